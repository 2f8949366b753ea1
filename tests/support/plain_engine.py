"""Run with VLLM_PLUGINS="": what the bystanders get from an engine without the plugin."""

import pickle
import sys
from pathlib import Path

from engine.test_engine import bystander_results

from support.engine import make_llm

if __name__ == "__main__":
    llm = make_llm(Path(sys.argv[1]))
    assert not hasattr(llm.llm_engine.input_processor, "adaptvis")
    Path(sys.argv[2]).write_bytes(pickle.dumps(bystander_results(llm, mixed=False)))
