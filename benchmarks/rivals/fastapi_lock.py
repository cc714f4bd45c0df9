"""FastAPI by hand, as PaddleX's basic serving does it: one pipeline, one lock, a thread for the work.

From PaddleX's ``inference/serving/basic_serving``: images are decoded in a thread each, outside of the lock;
an ``asyncio.Lock`` lets one request at a time into the pipeline; there is no batching.
"""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.rivals.task import PATH, PORT, answer, image, open_task


class Body(BaseModel):
    """Paddle Serving's request."""

    key: list[str]
    value: list[str]


app = FastAPI()
task = open_task()
lock = asyncio.Lock()


@app.post(PATH)
async def prediction(body: Body) -> dict[str, Any]:
    """One image."""
    prepared = await asyncio.to_thread(lambda: task.prepare(image({"value": body.value})))
    async with lock:
        (fields,) = await asyncio.to_thread(task.infer, [prepared])
    return answer(fields)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
