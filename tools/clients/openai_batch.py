"""Batch files with the official OpenAI client's types.

openai_batch.py write REQUESTS QUESTIONS        a batch file
openai_batch.py compare REQUESTS ANSWERS URL    its answers, against the same requests online
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ask import ADAPTIVE
from openai import OpenAI
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming


def write(requests: str, questions: str) -> None:
    with open(requests, "w") as out:
        for number, line in enumerate(Path(questions).read_text().splitlines()):
            row = json.loads(line)
            body: CompletionCreateParamsNonStreaming = {
                "model": "spatial",
                "max_tokens": 4,
                "temperature": 0,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": row["image"]}},
                            {"type": "text", "text": row["question"]},
                        ],
                    }
                ],
            }
            request = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions"}
            out.write(json.dumps(request | {"body": {**body, "vllm_xargs": ADAPTIVE}}) + "\n")
    print(f"{number + 1} requests")


def compare(requests: str, answers: str, url: str) -> None:
    client = OpenAI(base_url=url, api_key="none")
    asked = [json.loads(line) for line in Path(requests).read_text().splitlines()]
    given = [json.loads(line) for line in Path(answers).read_text().splitlines()]
    assert [a["custom_id"] for a in asked] == [g["custom_id"] for g in given]
    same = steered = 0
    for request, row in zip(asked, given, strict=True):
        batch = ChatCompletion.model_validate(row["response"]["body"], strict=False)
        body = dict(request["body"])
        xargs = body.pop("vllm_xargs")
        online = client.chat.completions.create(**body, extra_body={"vllm_xargs": xargs})
        reports = [(c.model_extra or {}).get("adaptvis") or {} for c in (batch, online)]
        steered += all(report.get("steered") for report in reports)
        same += batch.choices[0].message.content == online.choices[0].message.content
    print(f"{len(given)} answers, {steered} steered, {same} as online")
    assert steered == same == len(given)


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](*sys.argv[2:])
