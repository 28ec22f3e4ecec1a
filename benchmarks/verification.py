"""How well networks tell people apart: verification AUC and right pairs on data sets, as a table in Markdown.

    python -m benchmarks.verification NETWORK,NETWORK,... FOLDER FOLDER ...

A network is what `embed.network` of params.yaml may be; a folder holds a data set (study/faces/dataset.py).
Every face is kept, found or not, as in a study; the last columns are of those found alone. What is
embedded is kept in build/runs.
"""

import sys

from study.faces.dataset import read_faces
from study.faces.embed import embed_faces
from study.faces.verification import pair_similarities, right_pairs, verification_auc


def main(networks: str, *folders: str) -> None:
    names = networks.split(",")
    short = [name.partition("@")[0].rpartition("/")[2] for name in names]
    alone = [f"found alone: {name}" for name in short]
    print("| " + " | ".join(["data set", "images", "people", "found", *short, *alone]) + " |")
    print("|---" * (4 + 2 * len(names)) + "|", flush=True)
    for folder in folders:
        data = read_faces(folder, check_images=False)
        row = [data.card["name"], f"{len(data):,}", f"{data.frame['identity'].nunique():,}"]
        results = [embed_faces(data, name, name, progress=False) for name in names]
        found, people = results[0].detection.found, data.identities()
        row.append(f"{found.mean():.1%}")
        for rows in (slice(None), found):
            for result in results:
                pairs = pair_similarities(result.embedding[rows], people[rows])
                row.append(f"{verification_auc(*pairs):.4f}, {right_pairs(*pairs):.1%}")
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
