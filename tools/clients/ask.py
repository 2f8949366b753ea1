"""One question by the official OpenAI client: ask.py BASE_URL KEY QUESTIONS.

Whole, streamed, and with a wrong parameter; prints what comes back beside the answer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

ADAPTIVE = {"adaptvis_alpha_low": 0.5, "adaptvis_alpha_high": 4.0, "adaptvis_threshold": 0.6}


def main(url: str, key: str, questions: str) -> None:
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)
    with open(questions) as lines:
        row = json.loads(next(lines))
    request: dict[str, Any] = {
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
        "extra_body": {"vllm_xargs": ADAPTIVE},
    }
    whole = client.chat.completions.create(**request)
    print("whole:", whole.choices[0].message.content, (whole.model_extra or {}).get("adaptvis"))
    text, report = "", None
    for chunk in client.chat.completions.create(stream=True, **request):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        report = (chunk.model_extra or {}).get("adaptvis") or report
    print("stream:", text, report)
    try:
        client.chat.completions.create(
            **request | {"extra_body": {"vllm_xargs": {"adaptvis_alpha": -1}}}
        )
    except openai.APIStatusError as error:
        print(f"alpha -1: {error.status_code}: {error.message:.200}")


if __name__ == "__main__":
    main(*sys.argv[1:])
