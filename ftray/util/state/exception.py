"""Errors of the state API."""

from __future__ import annotations


class RayStateApiException(Exception):
    """The question cannot be answered, or not completely."""


class ServerUnavailable(RayStateApiException):
    """There is no session to ask, or its node process does not answer."""
