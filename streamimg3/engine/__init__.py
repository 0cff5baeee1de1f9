"""Work: tasks, the memory budget, executors and receipts; knows no images (standard library only)."""

from streamimg3.engine.runner import Outcome, Runner
from streamimg3.engine.task import Task

__all__ = ["Outcome", "Runner", "Task"]
