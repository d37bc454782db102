import pytest

from tinyseed.errors import InputError
from tinyseed.methods.catalog import METHODS
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.seed import SeedSettings
from tinyseed.recipes import settings_of
from tinyseed.studies.base import Row, Study
from tinyseed.studies.catalog import STUDIES, find_study
from tinyseed.studies.cells import Plan, groups
from tinyseed.studies.settings import Budget, StudySettings, budget_of, set_values, values_of

ROWS = (
    Row("random", "random init", None),
    Row("cold", "τ_T 0.01", "seed", {"teacher_temperature": 0.01}),
    Row("warm", "τ_T 0.1", "seed", {"teacher_temperature": 0.1}, own=("projector", ("mlp", "linear"))),
    Row("moco", "MoCo", "moco-v2", {"queue_size": 32}),
)
STUDY = Study("test", "a test", "ours", ROWS, {"image_size": 32, "batch_size": 8}, "test_resnet", "2epochs")


def given(tmp_path, **changes) -> StudySettings:
    data = {"data": ("photos",), "test_data": ("photos",), "out": tmp_path, "teacher": "resnet10t"}
    return StudySettings(**{**data, **changes})


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5min", Budget(minutes=5.0)),
        ("0.5 minutes", Budget(minutes=0.5)),
        ("20epochs", Budget(epochs=20)),
        ("1epoch", Budget(epochs=1)),
    ],
)
def test_budgets(text, budget):
    assert budget_of(text) == budget


@pytest.mark.parametrize(
    "text", ["0min", "0epochs", "5", "1.5epochs", "-1min", "min", "1e99epochs", "five min"]
)
def test_a_budget_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=f"^budget={text}: give minutes") as caught:
        given(tmp_path, budget=text).check()
    assert "\n" not in str(caught.value)


def test_a_budget_is_multiplied_and_never_nothing():
    assert budget_of("3min").of(0.5) == {"max_minutes": 1.5}
    assert budget_of("3epochs").of(4.0) == {"epochs": 12}
    assert budget_of("1epoch").of(0.25) == {"epochs": 1}


def test_texts_become_values_of_the_settings_types():
    kinds = (SeedSettings, MoCoSettings)
    texts = {"lr": ["1"], "small_stem": ["true"], "queue_size": ["auto"], "crop_scale": ["0.2", "1"]}
    assert set_values(texts, kinds) == {
        "lr": 1,
        "small_stem": True,
        "queue_size": "auto",
        "crop_scale": (0.2, 1),
    }
    assert values_of({"encoder_momentum": ["0.9", "1e-1"]}, kinds, "tune") == {"encoder_momentum": [0.9, 0.1]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"set": ("lr=much",)}, "set=lr=much: much is not a value of this setting"),
        ({"set": ("lr=1,2",)}, "set=lr=1,2: give one value"),
        ({"set": ("learning=1",)}, "set=learning: no row has such a setting"),
        ({"set": ("batch_sise=1",)}, "set=batch_sise: no row has such a setting; did you mean batch_size?"),
        ({"set": ("lr",)}, "set=lr: give NAME=VALUE"),
        ({"set": ("seed=3",)}, "set=seed: the study decides it; give `seed` and `seeds`"),
        ({"tune": ("epochs=3,4",)}, "tune=epochs: the study decides it; give `budget`"),
        ({"tune": ("lr=0,1",)}, "lr=0: give a number above 0"),
        ({"seeds": 0}, "seeds=0: give a number from 1 to 1000"),
        ({"rows": ("warn",)}, "rows=warn: test has no such row; did you mean warm?"),
        ({"teacher": ""}, "teacher: missing: give the network that the students learn from"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path, changes, told):
    with pytest.raises(InputError) as caught:
        Plan.of(STUDY, given(tmp_path, **changes))
    assert str(caught.value).startswith(told)


def test_a_teacher_is_asked_for_only_where_a_row_needs_it(tmp_path):
    plan = Plan.of(STUDY, given(tmp_path, teacher="", rows=("random", "moco")))
    assert [row.name for row in plan.rows] == ["random", "moco"]


def test_an_unknown_study_is_refused_with_all_names():
    with pytest.raises(InputError, match="study=paper: unknown study; give one of paper-strategies, "):
        find_study("paper")


def test_cells_by_epochs_share_a_training_and_those_by_minutes_do_not(tmp_path):
    by_epochs = Plan.of(STUDY, given(tmp_path, seeds=2))
    first, second = by_epochs.cells()
    names = [[cell.name for cell in group] for group in groups([*first, *second])]
    assert names == [
        ["random,seed=0"],
        ["cold,seed=0", "warm,seed=0"],
        ["moco,seed=0"],
        ["random,seed=1"],
        ["cold,seed=1", "warm,seed=1"],
        ["moco,seed=1"],
    ]
    cold, warm = first[1].settings, first[2].settings
    assert (cold.teacher_temperature, warm.teacher_temperature, cold.epochs) == (0.01, 0.1, 2)
    assert cold.out.parent == warm.out.parent != second[1].settings.out.parent
    by_minutes = Plan.of(STUDY, given(tmp_path, budget="3min"))
    (cells,) = by_minutes.cells()
    assert [len(group) for group in groups(cells)] == [1, 1, 1, 1]
    assert cells[1].settings.max_minutes == 3.0


def test_a_group_keeps_its_folder_whatever_rows_are_asked_for(tmp_path):
    """So that a row that is added later, or moved data, meets the runs that are there."""
    whole, part = (
        Plan.of(STUDY, given(tmp_path, **changes))
        for changes in ({}, {"rows": ("warm",), "data": ("moved",)})
    )
    assert next(whole.cells())[2].folder == next(part.cells())[0].folder
    other = Plan.of(STUDY, given(tmp_path, set=("image_size=64",)))
    assert next(other.cells())[2].folder != next(whole.cells())[2].folder


def test_every_row_is_tuned_among_equally_many_values(tmp_path):
    plan = Plan.of(STUDY, given(tmp_path, tune=("lr=0.1,0.3",)))
    tuned = {row.name: plan.tuned_in(row) for row in plan.rows}
    assert tuned == {
        "random": [],
        "cold": [("lr", [0.1, 0.3])],
        "warm": [("lr", [0.1, 0.3]), ("projector", ["mlp", "linear"])],
        "moco": [("lr", [0.1, 0.3])],
    }
    assert plan.trials() == 2 + 3 + 2


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_study_is_well_formed(study, tmp_path):
    """Names are unique, budgets are budgets, teachers can be pre-trained, its own values begin with the default."""
    assert len({row.name for row in study.rows}) == len(study.rows)
    budget_of(study.budget)
    specs = {spec.name: spec for spec in METHODS}
    for row in study.rows:
        if row.teacher is not None:
            kind = specs[row.teacher.method].settings
            assert row.teacher.settings.keys() <= {*kind.__dataclass_fields__}
        if row.own is not None:
            name, values = row.own
            assert specs[row.method].settings.__dataclass_fields__[name].default == values[0]
            assert len(set(values)) == len(values) >= 3
    (cells,) = Plan.of(study, given(tmp_path)).cells()
    assert [cell.row.name for cell in cells] == [row.name for row in study.rows]


def test_the_temperatures_are_those_of_the_table():
    rows = find_study("paper-temperature").rows
    assert [row.x for row in rows] == [0.3, 0.1, 0.05, 0.01, 1e-3, 1e-4, 0.0]
    assert all(row.settings == {"teacher_temperature": row.x} for row in rows[:-1])


def test_seed_at_the_papers_scale_is_the_papers_recipe(tmp_path):
    """What the study leaves out of the recipe, because other methods have settings of that name, is the default."""
    plan = Plan.of(find_study("paper-strategies-imagenet"), given(tmp_path, rows=("seed",)))
    ((cell,),) = plan.cells()
    assert cell.settings is not None
    recipe = settings_of("seed-imagenet", "distill")
    assert {name: getattr(cell.settings, name) for name in recipe} == recipe
    assert cell.settings.student == "resnet18"
    assert "teacher_temperature" not in plan.study.common  # CompRess has another one
