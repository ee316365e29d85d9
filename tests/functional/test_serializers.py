"""Serializers that a program registers for classes of its own: on every way that a value takes."""

from __future__ import annotations

import threading

import pytest

import ftray as ray
from ftray import util
from ftray.exceptions import DeserializationError, RayTaskError, SerializationError

pytestmark = pytest.mark.usefixtures("runtime")


class Connection:
    """Cannot be pickled."""

    def __init__(self, url):
        self.url = url
        self.lock = threading.Lock()


def connect(url):
    if url == "db://down":
        raise ConnectionError(f"{url} does not answer")
    return Connection(url)


def address_of(connection):
    if connection.url == "db://secret":
        raise PermissionError("may not leave this process")
    return connection.url


def register():
    util.register_serializer(Connection, serializer=address_of, deserializer=connect)


@pytest.fixture
def registered():
    register()
    yield
    util.deregister_serializer(Connection)


@ray.remote
def url_of(connection):
    return connection.url


@ray.remote
def make(url):
    return Connection(url)


@ray.remote
class Keeper:
    def __init__(self, connections):
        self.connections = connections
        register()

    def urls(self):
        return [connection.url for connection in self.connections]

    def first(self):
        return self.connections[0]


def test_values_arguments_and_what_actors_keep(registered):
    connection = Connection("db://one")
    assert ray.get(ray.put({"deep": [connection]}))["deep"][0].url == "db://one"
    assert ray.get(url_of.remote(connection)) == "db://one"
    assert ray.get(url_of.remote(ray.put(connection))) == "db://one"
    keeper = Keeper.remote([connection, Connection("db://two")])
    assert ray.get(keeper.urls.remote()) == ["db://one", "db://two"]

    @ray.remote
    def closure():
        return connection.url

    assert ray.get(closure.remote()) == "db://one"


def test_each_process_registers_for_what_it_sends(registered):
    """The deserializer travels with the value, the serializer does not."""
    keeper = Keeper.remote([Connection("db://one")])
    assert ray.get(keeper.first.remote()).url == "db://one"
    with pytest.raises(SerializationError, match="lock"):
        ray.get(make.remote("db://one"))


def test_without_it_the_value_is_refused_as_before():
    register()
    util.deregister_serializer(Connection)
    with pytest.raises(SerializationError, match="lock"):
        ray.put(Connection("db://one"))
    with pytest.raises(SerializationError, match="lock"):
        url_of.remote(Connection("db://one"))


def test_errors_of_the_users_functions_are_told(registered):
    with pytest.raises(SerializationError, match="may not leave this process") as caught:
        ray.put([Connection("db://secret")])
    assert isinstance(caught.value.__cause__, PermissionError)
    with pytest.raises(SerializationError, match=r"value\[0\] -> what its serializer returned.*generator"):
        ray.put([Connection(letter for letter in "db")])
    down = ray.put(Connection("db://down"))
    with pytest.raises(DeserializationError, match="db://down does not answer"):
        ray.get(down)
    with pytest.raises((DeserializationError, RayTaskError), match="db://down does not answer"):
        ray.get(url_of.remote(Connection("db://down")))
    assert ray.get(url_of.remote(Connection("db://up"))) == "db://up"
