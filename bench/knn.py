"""Neighbours of many images among many: tinyseed beside faiss and scikit-learn, time and peak memory of each.

    python bench/knn.py [--rows 100000] [--width 512] [--k 200] [--repeats 1] [--threads 2]

Each side runs in a process of its own, so that its peak memory is its own; turns alternate. All search the same
random unit rows, exactly: faiss' flat inner-product index, scikit-learn's brute force on cosines. Needs faiss-cpu and
scikit-learn (pip install -c constraints.txt faiss-cpu scikit-learn). Writes bench/results/knn.json.
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

SIDES = ("tinyseed", "tinyseed, half precision", "faiss", "scikit-learn")
CHECKED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=SIDES, help="run this side alone, in this process")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    turns = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side in SIDES:
            turns[side].append(in_a_process(arguments, side))
    tell(arguments, turns)


def in_a_process(arguments: argparse.Namespace, side: str) -> dict:
    given = {name: getattr(arguments, name) for name in ("rows", "width", "k", "threads")}
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
    generator = np.random.default_rng(0)
    bank, queries = (
        generator.standard_normal((arguments.rows, arguments.width), np.float32) for _ in range(2)
    )
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    way = {"faiss": faiss, "scikit-learn": scikit_learn}.get(arguments.side, tinyseed)
    search = way(arguments, "half" in arguments.side, bank, queries)
    before = peak()
    began, cpu = time.perf_counter(), time.process_time()
    similarities, positions = search()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    few = range(0, arguments.rows, max(1, arguments.rows // CHECKED))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "extra_mib": peak() - before,
        "neighbours": [sorted(positions[row].tolist()) for row in few],
        "mean_similarity": float(np.asarray(similarities, np.float64).mean()),
    }


def tinyseed(arguments, half, bank, queries):
    import torch

    from tinyseed.evaluation.search import nearest

    torch.set_num_threads(arguments.threads)
    dtype = torch.float16 if half else torch.float32
    ours = [torch.from_numpy(rows).to(dtype) for rows in (queries, bank)]

    def search():
        found = nearest(*ours, arguments.k)
        return found.similarities.numpy(), found.positions.numpy()

    return search


def faiss(arguments, half, bank, queries):
    del half
    import faiss

    faiss.omp_set_num_threads(arguments.threads)

    def search():
        index = faiss.IndexFlatIP(arguments.width)
        index.add(bank)
        return index.search(queries, arguments.k)

    return search


def scikit_learn(arguments, half, bank, queries):
    del half
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

    exact = turns["faiss"][0]["neighbours"]
    table = Table("side", "seconds", "times ours", "CPU s", "extra MiB", "neighbours as faiss")
    rows = {}
    for side, runs in turns.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        shared = [len(set(one) & set(other)) for one, other in zip(runs[0]["neighbours"], exact, strict=True)]
        rows[side] = {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in runs), 3),
            "extra_mib": round(max(run["extra_mib"] for run in runs), 1),
            "same_neighbours": round(sum(shared) / (len(shared) * arguments.k), 6),
            "mean_similarity": runs[0]["mean_similarity"],
        }
    for side, row in rows.items():
        ratio = row["seconds"] / rows["tinyseed"]["seconds"]
        cells = (
            f"{row['seconds']:.2f}",
            f"{ratio:.2f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['extra_mib']:,.0f}",
        )
        table.add_row(side, *cells, f"{row['same_neighbours']:.2%}")
    Console().print(table)
    setting = {name: getattr(arguments, name) for name in ("rows", "width", "k", "threads", "repeats")}
    write_results("knn", {**setting, "sides": rows, "machine": machine()})


if __name__ == "__main__":
    main()
