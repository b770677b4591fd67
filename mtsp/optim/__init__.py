"""Optimizers, learning rates of branches, modules and depths, and schedules as pure functions of the step."""
