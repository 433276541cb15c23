"""Several calls in one HTTP request: multipart/mixed with a part `application/http` each, as googleapiclient's
BatchHttpRequest and gcloud send them (https://cloud.google.com/compute/docs/api/how-tos/batch).

Parts are answered in their order; a failed one has its own status, the whole is 200.
"""

from collections.abc import Sequence
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from typing import NamedTuple
from uuid import uuid4

from yarl import URL

from imageopsd.api.calls import Call
from imageopsd.api.envelope import Answer
from imageopsd.model.errors import InvalidRequest

MOST_PARTS = 1000
"""The limit of Compute's own batches."""

METHODS = ("GET", "POST", "PATCH", "DELETE", "PUT")


class Part(NamedTuple):
    """`content_id` is the client's name for the call, in angle brackets."""

    content_id: str
    call: Call


def read(content_type: str, body: bytes) -> list[Part]:
    """The calls of a batch. Raises InvalidRequest for what is no batch."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    if message.get_content_type() != "multipart/mixed" or not message.is_multipart():
        raise InvalidRequest("batch", "Invalid value for field 'batch'. Expected multipart/mixed with a boundary.")
    parts = [part for part in message.iter_parts() if isinstance(part, EmailMessage)]
    if not 1 <= len(parts) <= MOST_PARTS:
        raise InvalidRequest("batch", f"Invalid value for field 'batch'. Expected 1 to {MOST_PARTS} parts.")
    return [_part(number, part) for number, part in enumerate(parts)]


def _part(number: int, part: EmailMessage) -> Part:
    field = f"batch.parts[{number}]"
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    line, _, rest = content.lstrip(b"\r\n").partition(b"\n")
    words = line.decode("latin-1").split()
    if part.get_content_type() != "application/http" or len(words) < 2 or words[0] not in METHODS:
        raise InvalidRequest(field, f"Invalid value for field '{field}'. Expected an application/http request.")
    _headers, _, body = rest.replace(b"\r\n", b"\n").partition(b"\n\n")
    try:
        url = URL(words[1], encoded=True)
    except ValueError as error:
        raise InvalidRequest(field, f"Invalid value for field '{field}'. Expected a URL's path.") from error
    call = Call(method=words[0], path=url.raw_path, query=url.query, body=body.strip(b"\n"))
    return Part(str(part.get("Content-ID", "")), call)


def write(answers: Sequence[tuple[Part, Answer]]) -> tuple[str, bytes]:
    """Content type and body of the whole answer."""
    boundary = f"batch_{uuid4().hex}"
    chunks: list[bytes] = []
    for part, answer in answers:
        content_id = f"<response-{part.content_id.removeprefix('<')}" if part.content_id else ""
        lines = [f"--{boundary}", "Content-Type: application/http"]
        lines += [f"Content-ID: {content_id}"] if content_id else []
        lines += ["", f"HTTP/1.1 {answer.status.value} {answer.status.phrase}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines += ["Content-Type: application/json; charset=UTF-8", f"Content-Length: {len(answer.body)}", "", ""]
        chunks += ["\r\n".join(lines).encode(), answer.body, b"\r\n"]
    chunks.append(f"--{boundary}--\r\n".encode())
    return f"multipart/mixed; boundary={boundary}", b"".join(chunks)
