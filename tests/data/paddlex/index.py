"""Run by a Python with PaddleX: builds, searches and changes indexes with PaddleX's own code.

    python index.py build FOLDER          a folder for each type of index, and answers.json
    python index.py search INDEX          vectors as JSON on standard input -> PaddleX's answers as JSON
    python index.py append INDEX OUT      vectors and labels as JSON on standard input
    python index.py remove INDEX OUT ID…

``tests/data/paddlex/indexes`` was written by ``build`` with PaddleX 3.7.2 and faiss-cpu 1.14.
"""

import json
import sys
from pathlib import Path

import numpy as np
from paddlex.inference.pipelines.components.faisser import FaissBuilder, FaissIndexer

LABELS = ["cola", "tea", "黑咖啡", "007", "yes: no", "orange juice", "- dash", "null", "a # b", "'quoted'"]


def vectors(count=20, dimension=8):
    rows = np.random.default_rng(3).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def predictor(rows):
    """What PaddleX asks for features: a function of a list of images."""
    return lambda images: [{"feature": rows[i]} for i in range(len(images))]


def search(index, rows, threshold=-10.0, top_k=3):
    found = FaissIndexer(index)(np.asarray(rows, np.float32), threshold, None, top_k)
    return [
        {"label": each["label"], "score": each["score"] and [float(score) for score in each["score"]]}
        for each in found
    ]


def build(folder):
    rows = vectors()
    labels = [LABELS[i % len(LABELS)] for i in range(len(rows))]
    answers = {}
    for kind in ("Flat", "HNSW32", "IVF"):
        for metric in ("IP", "L2"):
            data = FaissBuilder.build(labels, labels, predictor(rows), metric_type=metric, index_type=kind)
            data.save(str(folder / f"{kind}-{metric}"))
            answers[f"{kind}-{metric}"] = search(str(folder / f"{kind}-{metric}"), rows[:4])
    content = {"vectors": rows.tolist(), "labels": labels, "answers": answers}
    (folder / "answers.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def main(command, first, *rest):
    if command == "build":
        return build(Path(first))
    if command == "remove":
        return FaissBuilder.remove([int(number) for number in rest[1:]], first).save(rest[0])
    given = json.load(sys.stdin)
    if command == "search":
        return print(json.dumps(search(first, given)))
    rows = np.asarray(given["vectors"], np.float32)
    return FaissBuilder.append(given["labels"], given["labels"], predictor(rows), first).save(rest[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
