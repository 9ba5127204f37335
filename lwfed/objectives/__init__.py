"""Objectives and metrics: pure functions of tensors."""
