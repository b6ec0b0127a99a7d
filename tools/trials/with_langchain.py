"""Try LangChain: both of its models, and a template with a system prompt."""

from common import BEGINNINGS, ENDINGS, LOUD_REPLIES, QUESTIONS, REPLIES, SERVICE, SYSTEM, trial
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

chat = ChatOpenAI(model="chat", **SERVICE)
text = OpenAI(model="names", temperature=0, **SERVICE)
template = [("system", SYSTEM), ("placeholder", "{history}"), ("human", "{question}")]
chain = ChatPromptTemplate.from_messages(template) | chat
first = {"question": QUESTIONS[0]}


def conversation():
    reply = chain.invoke(first)
    history = [("human", QUESTIONS[0]), reply]
    return [reply.content, chain.invoke({"history": history, "question": QUESTIONS[1]}).content]


def stream():
    return "".join(chunk.content for chunk in chain.stream(first))


def batch():
    return [reply.content for reply in chain.batch([first, first])]


trial("plain", REPLIES[0], lambda: chat.invoke(QUESTIONS[0]).content)
trial("system prompt", LOUD_REPLIES, conversation)
trial("stream", LOUD_REPLIES[0], stream)
trial("list or batch", ENDINGS, lambda: text.batch(BEGINNINGS))
trial("`ChatOpenAI.batch`", LOUD_REPLIES[:1] * 2, batch)
trial("`OpenAI.invoke`", ENDINGS[0], lambda: text.invoke(BEGINNINGS[0]))
trial("`OpenAI.stream`", ENDINGS[0], lambda: "".join(text.stream(BEGINNINGS[0])))
