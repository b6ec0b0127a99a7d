"""Documents and conversations for the tests of all that reads or encodes them."""

from hypothesis import strategies as st
from microgpt import Message
from microgpt.checks import ROLES

# Half of them of few characters, so that they repeat.
texts = st.text("ab\U0001f600") | st.text()
documents = st.lists(texts, min_size=1).filter(lambda docs: any(doc.strip() for doc in docs))
turns = st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": texts})
conversations = st.lists(st.lists(turns, min_size=1, max_size=6), min_size=1, max_size=5)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


TALK = [user("hi"), assistant("hello"), user("bye"), assistant("see you")]
