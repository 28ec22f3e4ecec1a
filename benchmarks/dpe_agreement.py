"""DPE here beside its authors' package, on the same data: the same numbers to noise.

    pip install dpe==0.2.0          not a requirement of the project
    python benchmarks/dpe_agreement.py

Both train on the same biased images, which are made here, with the same settings and without group labels;
every seed draws other images. What is compared are accuracies on test images, and the
ensembles' probabilities: between the two implementations, and between two runs of the package by another
seed on the same images, which is the noise.
"""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from dpe import DPE
from tqdm import tqdm

from cid.prototypes import fit_prototypes

SEEDS = 6
CLASS, TEST, DIMENSIONS = 128, 1000, 64  # training images of a class, test images
SETTINGS = {"members": 4, "epochs": 10, "batch": 64, "learning_rate": 3e-3, "likeness": 5e4}


def drawn(rng: np.random.Generator, n: int, rare: float, cores: np.ndarray):
    """Images of two classes, of which a share is on a background that goes with the other class."""
    labels = np.arange(n) % 2
    minority = rng.random(n) < rare
    background = np.where(minority, 1 - labels, labels)
    features = rng.normal(size=(n, DIMENSIONS)) + cores[0, labels] + 1.5 * cores[1, background]
    return features.astype(np.float32), labels, minority


def by_package(folder: Path, train, test, seed: int) -> np.ndarray:
    """Probabilities (n, 2) of the test images by the package."""
    table = []
    for number, (name, (features, labels, _)) in enumerate([("val", train), ("test", test)], 1):
        np.save(folder / f"feats_{name}.npy", features)
        table.append(pd.DataFrame({"split": number, "y": labels, "a": 0, "filename": "none"}))
    pd.concat(table, ignore_index=True).to_csv(folder / "metadata.csv", index=False)
    with contextlib.redirect_stderr(io.StringIO()):
        package = DPE(
            data_dir=str(folder),
            metadata_path=str(folder / "metadata.csv"),
            num_stages=SETTINGS["members"],
            epochs=SETTINGS["epochs"],
            batch_size_train=SETTINGS["batch"],
            lr=SETTINGS["learning_rate"],
            cov_reg=SETTINGS["likeness"],
            emb_dim=DIMENSIONS,
            device="cpu",
            train_attr="no",
            seed=seed,
        )
        package.fit()
    return package.predict_proba().numpy()


def compared(seed: int) -> dict[str, float]:
    """One seed: both implementations, and the package again."""
    rng = np.random.default_rng(seed)
    cores = rng.normal(size=(2, 2, DIMENSIONS)) / 4
    train = drawn(rng, 2 * CLASS, 0.05, cores)
    test = drawn(rng, TEST, 0.5, cores)
    with tempfile.TemporaryDirectory() as folder:
        package, again = (by_package(Path(folder), train, test, s) for s in (seed, seed + SEEDS))
    ours = fit_prototypes(train[0], train[1], seed=seed, device="cpu", **SETTINGS)
    ours = ours.probabilities(test[0])
    labels, minority = test[1:]
    row = {}
    for name, probability in (("ours", ours), ("package", package), ("again", again)):
        right = probability.argmax(axis=1) == labels
        row[f"{name}, accuracy"] = 100 * right.mean()
        row[f"{name}, minority"] = 100 * right[minority].mean()
    log_odds = {
        name: np.log(p[:, 1] / p[:, 0])
        for name, p in (("ours", ours), ("package", package), ("again", again))
    }
    spread = log_odds["package"].std()
    for name in ("ours", "again"):
        apart = log_odds[name] - log_odds["package"]
        row[f"{name}, log-odds apart"] = np.sqrt((apart**2).mean()) / spread
    return row


def main() -> None:
    table = pd.DataFrame([compared(seed) for seed in tqdm(range(SEEDS), desc="compare")])
    print(table.round(3).to_string())
    for measure in ("accuracy", "minority"):
        gap = table[f"ours, {measure}"] - table[f"package, {measure}"]
        noise = table[f"again, {measure}"] - table[f"package, {measure}"]
        print(
            f"{measure}: ours less the package {gap.mean():+.2f} points, standard error "
            f"{gap.std() / np.sqrt(SEEDS):.2f}; the package again {noise.mean():+.2f}, standard error "
            f"{noise.std() / np.sqrt(SEEDS):.2f}"
        )
    apart = table[["ours, log-odds apart", "again, log-odds apart"]].mean()
    print(
        f"log-odds apart, in their standard deviations: ours and the package {apart.iloc[0]:.3f}, the "
        f"package and itself {apart.iloc[1]:.3f}"
    )


if __name__ == "__main__":
    main()
