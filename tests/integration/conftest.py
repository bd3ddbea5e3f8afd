"""Session-wide fixtures: one endpoint serves all integration tests that need one."""

from serving_fixtures import served

__all__ = ["served"]
