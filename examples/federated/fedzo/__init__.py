"""A Flower app: two clients with rows of their own, one of which joins late."""
