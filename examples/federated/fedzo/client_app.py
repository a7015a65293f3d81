"""A client: it looks at the step's points on its own rows, and sends their losses."""

from __future__ import annotations

from fedzo.shared import make_method, own_batches
from zopeft.federated import Participant, client_app


def make(context):
    """Returns the client that Flower has given a number among its partitions."""
    method, tokenizer = make_method()
    number = int(context.node_config["partition-id"])
    return Participant(method, own_batches(method, tokenizer, number))


app = client_app(make)
