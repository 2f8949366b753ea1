"""Make a seeded random checkpoint of LLaVA-1.5's shape: python benchmarks/make_model.py FOLDER"""

import argparse
from dataclasses import fields

from adaptvis_vllm.bench.model import Shape, make_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    args = vars(parser.parse_args())
    folder, seed = args.pop("folder"), args.pop("seed")
    print(make_model(folder, Shape(**args), seed))


if __name__ == "__main__":
    main()
