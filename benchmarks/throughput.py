"""`adaptvis bench` from a checkout: python benchmarks/throughput.py throughput --rounds 5"""

import sys

from adaptvis_vllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
