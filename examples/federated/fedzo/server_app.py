"""The server: it has the steps and the journal, and no data."""

from __future__ import annotations

from flwr.serverapp import ServerApp

from fedzo.shared import CLIENTS, make_method
from zopeft.federated import LossStrategy
from zopeft.journal import fingerprint

app = ServerApp()


@app.main()
def main(grid, context):
    """Makes steps; the client with the highest number takes part from step `late` on."""
    steps, late = int(context.run_config["steps"]), int(context.run_config["late"])
    method, _ = make_method()

    def choose(step, clients):
        return clients if step >= late else clients[: CLIENTS - 1]

    journal = context.run_config["journal"] or None
    strategy = LossStrategy(method, journal=journal, nodes=CLIENTS, choose=choose, check_steps=5)
    result = strategy.start(grid, num_rounds=steps)
    losses = [round(found["loss"], 4) for found in result.train_metrics_clientapp.values()]
    print("losses:", *losses)
    print("weights:", fingerprint(method.blocks))
