"""Clients of a service whose replicas are killed under them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from support.http_server import messages
from support.waiting import HANG_S, until

PICTURES = range(16)  # enough that two replicas both have some
TOKENS = 24
BACKOFF_S = 0.5  # the openai client's own first one
THINK_S = 0.3  # a user's


MESSAGES = {picture: messages(picture) for picture in PICTURES}


@dataclass
class Answer:
    """replica: the response's header, None where none came. start, end: monotonic seconds."""

    picture: int
    start: float
    end: float
    text: str | None = None
    report: dict[str, Any] | None = None
    replica: str | None = None
    error: Exception | None = None

    @property
    def retryable(self) -> bool:
        """As the openai client decides; a broken stream has no status."""
        if isinstance(self.error, openai.APIStatusError):
            return self.error.status_code >= 500
        return isinstance(self.error, openai.APIError | httpx.TransportError)


@dataclass
class Load:
    """`clients` threads, each asking about one picture after another; every other one streams.

    Errors are recorded and not retried by the client. think: seconds from an answer to the client's
    next request; what restarts meanwhile gets a processor sooner with some.
    """

    url: str
    clients: int
    think: float = 0
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Load:
        self.client = openai.OpenAI(
            base_url=self.url, api_key="none", max_retries=0, timeout=HANG_S
        )
        self.stopped = threading.Event()
        self.threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(self.clients)
        ]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        self.client.close()

    def _run(self, number: int) -> None:
        picture = number
        while not self.stopped.is_set():
            picture = (picture + 1) % len(PICTURES)
            answer = ask(self.client, picture, stream=number % 2 == 1)
            self.answers.append(answer)
            self.stopped.wait(self.think if answer.error is None else BACKOFF_S)

    def wait_for(self, what: Any) -> None:
        """Until what(answers) is true."""
        until(lambda: what(list(self.answers)))


def ask(
    client: openai.OpenAI,
    picture: int,
    stream: bool = False,
    tokens: int = TOKENS,
    begun: threading.Event | None = None,
) -> Answer:
    """begun: set by the first part of a stream."""
    answer = Answer(picture, time.monotonic(), 0)
    try:
        raw = client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=MESSAGES[picture],
            max_tokens=tokens,
            temperature=0,
            stream=stream,
            extra_body={"ignore_eos": True},
        )
        answer.replica = raw.headers.get("x-replica")
        result = raw.parse()
        if stream:
            text, last = "", None
            for chunk in result:
                if begun is not None:
                    begun.set()
                text += chunk.choices[0].delta.content or ""
                last = chunk
            if last is None or last.choices[0].finish_reason != "length":
                raise ValueError("the stream was cut silently")
            answer.text, answer.report = text, last.model_extra["adaptvis"]
        else:
            answer.text = result.choices[0].message.content
            answer.report = result.model_extra["adaptvis"]
    except (openai.APIError, httpx.TransportError, ValueError) as error:
        answer.error = error
    answer.end = time.monotonic()
    return answer
