"""LangChain's ChatOpenAI against a Quicksilver server: python langchain_chat.py http://127.0.0.1:8000/v1 MODEL."""

from __future__ import annotations

import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city and how warm it is there."""

    name: str = Field(max_length=20)
    degrees: int = Field(ge=-50, le=50)


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It snows in {city}."


def main(url: str, model: str) -> None:
    """Ask in four ways, and fail if an answer isn't what was asked for."""
    chat = ChatOpenAI(base_url=url, api_key="none", model=model, temperature=0, max_tokens=120)
    whole = chat.invoke("Name a city with a river.")
    assert whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    chunks = list(chat.stream("Name a city with a river.", stream_usage=True))
    assert "".join(chunk.content for chunk in chunks)
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
    called = chat.bind_tools([weather], tool_choice="required", parallel_tool_calls=False).invoke("Is it warm in Oslo?")
    assert [call["name"] for call in called.tool_calls] == ["weather"]
    assert isinstance(called.tool_calls[0]["args"]["city"], str)
    answered = chat.bind_tools([weather]).invoke(
        [("user", "Is it warm in Oslo?"), called, weather.invoke(called.tool_calls[0])]
    )
    assert answered.content or answered.tool_calls
    for method in ("json_schema", "function_calling"):
        city = chat.with_structured_output(City, method=method).invoke("Oslo has 3 degrees.")
        assert isinstance(city, City)
    print(f"{whole.content[:60]!r}, {called.tool_calls[0]['args']}, {city!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
