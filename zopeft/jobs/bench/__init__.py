"""Bench: methods compared on the same batches, each at its own best learning rate.

A run is one entry on one model, task, space and seed; its budget is counted in forward
passes. Rows of runs are data; tables and curves are pure functions of them.
"""
