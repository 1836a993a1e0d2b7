"""The networks of the zoo in a table: parameters, last map, milliseconds an image at 32 and 224 pixels.

    python tests/benchmarks/networks.py --threads 1

An image's time is that of a forward pass in evaluation mode over a batch (16 at 32 pixels, 2 at 224),
divided by the batch: the shortest of several passes, as whatever else the machine does only adds.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch

from icd.networks import NETWORKS, network


def milliseconds(name: str, image_size: int, batch: int, passes: int, device: str) -> tuple[float, int]:
    """The shortest pass, for one image, and the cells a side of the last map."""
    model = network(name, 200, image_size).eval().to(device)
    images = torch.randn(batch, 3, image_size, image_size, device=device)
    shortest = float("inf")
    with torch.inference_mode():
        features, _ = model.maps(images)
        for _ in range(passes):
            wait(device)
            began = time.perf_counter()
            model(images)
            wait(device)
            shortest = min(shortest, time.perf_counter() - began)
    return 1000 * shortest / batch, features.shape[-1]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"PyTorch {torch.__version__}, {where}, {options.threads} thread(s), float32, 200 classes\n")
    print(f"| {'network':12} | parameters | map at 32 | map at 224 | ms at 32 | ms at 224 |")
    print("|:-------------|-----------:|----------:|-----------:|---------:|----------:|")
    for name in NETWORKS:
        small, fine = milliseconds(name, 32, 16, options.passes, options.device)
        large, coarse = milliseconds(name, 224, 2, options.passes, options.device)
        count = sum(p.numel() for p in network(name, 200).parameters())
        print(
            f"| {name:12} | {count:10,} | {f'{fine} x {fine}':>9} | {f'{coarse} x {coarse}':>10} "
            f"| {small:8.2f} | {large:9.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
