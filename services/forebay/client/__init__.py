"""The Python client of the public API.

Owns: turning Python values into calls and answers into Python values. Does not own: retries of a prompt; a caller who wants one
reads `MeshError.retry_after`, which says when another try can succeed.

```python
async with ForebayClient("127.0.0.1:20001", key) as client:  # TLS to any other machine; see `ForebayClient`
    stream = client.stream("What is the capital of France?", max_tokens=32)
    async for delta in stream:
        print(delta.text, end="", flush=True)
    print(stream.finished)
```
"""

from forebay.client.client import AnswerStream, ForebayClient
from forebay.client.connection import Tls
from forebay.client.model import (
    Answer,
    Choice,
    Delta,
    Finished,
    Message,
    Model,
    Options,
    Started,
    TokenCount,
    TokenUsage,
    UsageEntry,
    UsagePage,
    UsageTotal,
)
from forebay.errors import Code, MeshError

__all__ = [
    "Answer",
    "AnswerStream",
    "Choice",
    "Code",
    "Delta",
    "Finished",
    "ForebayClient",
    "MeshError",
    "Message",
    "Model",
    "Options",
    "Started",
    "Tls",
    "TokenCount",
    "TokenUsage",
    "UsageEntry",
    "UsagePage",
    "UsageTotal",
]
