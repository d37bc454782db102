"""Neighbours of many images among many: tinyseed beside faiss and scikit-learn, time and peak memory of each.

    python bench/knn.py [--rows 100000] [--width 512] [--k 200] [--kind noise|features] [--threads 2] [--repeats 1]
    python bench/knn.py --rows 1281167 --width 2048 --queries 2048 --sides "tinyseed, half precision" --name knn-large

Each side runs in a process of its own, so that its peak memory is its own; turns alternate. All search the same unit
rows, exactly: faiss' flat inner-product index, scikit-learn's brute force on cosines. "float32 product" is ours as on a
processor without bfloat16 where faiss is not installed. Noise is the same in all directions; features are 1,000
overlapping clusters behind a ReLU.
Needs faiss-cpu and scikit-learn (pip install -c constraints.txt faiss-cpu scikit-learn). Writes bench/results/knn.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

SIDES = ("tinyseed", "tinyseed, float32 product", "tinyseed, half precision", "faiss", "scikit-learn")
CHECKED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, help="as many as rows by default")
    parser.add_argument("--kind", choices=("noise", "features"), default="noise")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--name", default="knn", help="of the file of results")
    parser.add_argument("--side", choices=SIDES, help="run this side alone, in this process")
    arguments = parser.parse_args()
    arguments.queries = arguments.queries or arguments.rows
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    turns = {side: [] for side in arguments.sides}
    for _ in range(arguments.repeats):
        for side in arguments.sides:
            turns[side].append(in_a_process(arguments, side))
    tell(arguments, turns)


def in_a_process(arguments: argparse.Namespace, side: str) -> dict:
    given = {name: getattr(arguments, name) for name in ("rows", "queries", "width", "k", "kind", "threads")}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    threads = {f"{name}_NUM_THREADS": str(arguments.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        [sys.executable, __file__, *flags, "--side", side],
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{side}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict:
    """Seconds, memory beyond the two data sets, and the neighbours of a few images to compare."""
    dtype = np.float16 if "half" in arguments.side else np.float32
    generator = np.random.default_rng(0)
    bank = unit_rows(generator, arguments, arguments.rows, dtype)
    queries = unit_rows(generator, arguments, arguments.queries, dtype)
    way = {"faiss": faiss, "scikit-learn": scikit_learn}.get(arguments.side, tinyseed)
    search = way(arguments, bank, queries)
    before = peak()
    began, cpu = time.perf_counter(), time.process_time()
    similarities, positions = search()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    few = range(0, arguments.queries, max(1, arguments.queries // CHECKED))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "data_mib": (bank.nbytes + queries.nbytes) / 2**20,
        "extra_mib": peak() - before,
        "neighbours": [sorted(positions[row].tolist()) for row in few],
        "mean_similarity": float(np.asarray(similarities, np.float64).mean()),
    }


def unit_rows(generator, arguments, rows, dtype):
    """In blocks, so that the making of half precision takes no more memory than it."""
    made = np.empty((rows, arguments.width), dtype)
    centres = np.random.default_rng(1).standard_normal((1000, arguments.width), np.float32)
    for start in range(0, rows, 8192):
        block = generator.standard_normal((min(8192, rows - start), arguments.width), np.float32)
        if arguments.kind == "features":
            block = np.maximum(0, block + centres[generator.integers(1000, size=len(block))])
        made[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return made


def tinyseed(arguments, bank, queries):
    import torch

    from tinyseed.evaluation import search as module

    torch.set_num_threads(arguments.threads)
    if "float32" in arguments.side:
        module.native_bf16 = lambda on_gpu: False
        module.has_faiss = lambda: False
    ours = [torch.from_numpy(rows) for rows in (queries, bank)]

    def search():
        found = module.nearest(*ours, arguments.k)
        return found.similarities.numpy(), found.positions.numpy()

    return search


def faiss(arguments, bank, queries):
    import faiss

    faiss.omp_set_num_threads(arguments.threads)

    def search():
        index = faiss.IndexFlatIP(arguments.width)
        index.add(bank)
        return index.search(queries, arguments.k)

    return search


def scikit_learn(arguments, bank, queries):
    from sklearn.neighbors import NearestNeighbors

    def search():
        model = NearestNeighbors(n_neighbors=arguments.k, metric="cosine", algorithm="brute", n_jobs=-1)
        distances, positions = model.fit(bank).kneighbors(queries)
        return 1 - distances, positions

    return search


def peak() -> float:
    """This process' peak memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tell(arguments: argparse.Namespace, turns: dict[str, list[dict]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from common import machine, write_results

    reference = "faiss" if "faiss" in turns else next(iter(turns))
    exact = turns[reference][0]["neighbours"]
    columns = ("side", "seconds", "times the first", "CPU s", "extra MiB", "data MiB")
    table = Table(*columns, f"neighbours as {reference}")
    rows = {}
    for side, runs in turns.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        shared = [len(set(one) & set(other)) for one, other in zip(runs[0]["neighbours"], exact, strict=True)]
        rows[side] = {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in runs), 3),
            "extra_mib": round(max(run["extra_mib"] for run in runs), 1),
            "data_mib": round(runs[0]["data_mib"], 1),
            "same_neighbours": round(sum(shared) / (len(shared) * arguments.k), 6),
            "mean_similarity": runs[0]["mean_similarity"],
        }
    for side, row in rows.items():
        ratio = row["seconds"] / rows[arguments.sides[0]]["seconds"]
        cells = (
            f"{row['seconds']:.2f}",
            f"{ratio:.2f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['extra_mib']:,.0f}",
            f"{row['data_mib']:,.0f}",
        )
        table.add_row(side, *cells, f"{row['same_neighbours']:.2%}")
    Console().print(table)
    setting = {name: getattr(arguments, name) for name in vars(arguments) if name not in ("side", "sides")}
    write_results(arguments.name, {**setting, "sides": rows, "machine": machine()})


if __name__ == "__main__":
    main()
