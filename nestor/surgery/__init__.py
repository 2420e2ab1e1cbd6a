"""Edits: functions that take a model and return a new one."""
