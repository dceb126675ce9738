"""Shards tell each other what their clients say, and tell their clients what they are told."""

import msgspec

from cluster.worker import App, Session, ShardId

TELL, TOLD, LOST, ASK = 1, 2, 3, 4


class Saying(msgspec.Struct):
    """For the shard of a node."""

    node: int
    shard: int
    number: int


class Count(msgspec.Struct):
    """The answer to a question."""

    number: int


class Question(msgspec.Struct):
    """Something to be counted up."""

    number: int


app = App()
sessions: dict[int, Session] = {}


@app.on_connected
@app.on_resumed
def remember(session: Session) -> None:
    sessions[session.id] = session


@app.on_disconnected
def forget(session: Session, cause: str) -> None:
    sessions.pop(session.id, None)


@app.on_packet(TELL)
def tell(session: Session, saying: Saying) -> None:
    app.tell(ShardId(saying.node, saying.shard), saying)


@app.on_packet(ASK)
async def ask(session: Session, saying: Saying) -> None:
    to = ShardId(saying.node, saying.shard)
    count = await app.ask(to, Question(saying.number), Count, timeout_s=20)
    session.send(ASK, b"%d" % count.number)


@app.on_message
def told(saying: Saying, sender: ShardId) -> None:
    for session in sessions.values():
        session.send(TOLD, b"%d" % saying.number)


@app.on_message
def count(question: Question, sender: ShardId) -> Count:
    return Count(question.number + 1)


@app.on_undelivered
def lost(saying: Saying, receiver: ShardId | bytes) -> None:
    for session in sessions.values():
        session.send(LOST, b"%d" % saying.number)
