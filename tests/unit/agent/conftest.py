"""Conversations with a guest's agent, before and after its first word."""

import pytest
from agent_rig import Session, hello


@pytest.fixture
def session():
    return Session()


@pytest.fixture
def ready(session):
    session.client.received(hello())
    session.events.log.clear()
    return session
