"""Try pydantic-ai: an agent with instructions."""

import asyncio

from common import LOUD_REPLIES, QUESTIONS, REFUSED, REPLIES, SERVICE, SYSTEM, refusal, trial
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Greeting(BaseModel):
    """An output that needs a tool."""

    word: str


model = OpenAIChatModel("chat", provider=OpenAIProvider(**SERVICE))
agent = Agent(model, instructions=SYSTEM)
typed_agent = Agent(model, output_type=Greeting)


def conversation():
    reply = agent.run_sync(QUESTIONS[0])
    history = reply.all_messages()
    return [reply.output, agent.run_sync(QUESTIONS[1], message_history=history).output]


async def stream():
    async with agent.run_stream(QUESTIONS[0]) as answer:
        return "".join([piece async for piece in answer.stream_text(delta=True)])


def typed():
    return refusal(lambda: typed_agent.run_sync(QUESTIONS[0]), "tool")


trial("plain", REPLIES[0], lambda: Agent(model).run_sync(QUESTIONS[0]).output)
trial("system prompt", LOUD_REPLIES, conversation)
trial("stream", LOUD_REPLIES[0], lambda: asyncio.run(stream()))
trial("`output_type` is refused by name", REFUSED, typed)
