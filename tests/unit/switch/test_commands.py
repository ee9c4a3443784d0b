"""What the client orders is what the switch's process can do."""

from __future__ import annotations

import ast
import inspect

import pytest

from pytest_kvm.switch import client
from pytest_kvm.switch.client import Switch
from pytest_kvm.switch.commands import Commands
from pytest_kvm.switch.frames import to_wire
from pytest_kvm.switch.schedule import Schedule
from tests.unit.switch.conftest import EVERYBODY, Card, frame, mac

OF_THE_SERVER = {"wait_capture", "stop_waiting"}
"""Answered later than at once, so no method of the commands."""


def orders_of_the_client():
    """Return the name of each order that the client's code sends, and the arguments it names."""
    orders = {}
    for call in ast.walk(ast.parse(inspect.getsource(client))):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in {"self.order", "self.send"}:
            name = call.args[0]
            if isinstance(name, ast.Constant):
                orders[name.value] = {each.arg for each in call.keywords} - {"heard", None}
    return orders


def test_each_order_has_its_command_and_each_command_its_order():
    commands = {name.removeprefix("do_") for name in vars(Commands) if name.startswith("do_")}
    assert set(orders_of_the_client()) - OF_THE_SERVER == commands
    assert commands <= set(vars(Switch))


def test_orders_name_the_arguments_of_their_commands():
    for name, arguments in orders_of_the_client().items():
        if name not in OF_THE_SERVER:
            command = inspect.signature(getattr(Commands, f"do_{name}"))
            assert arguments <= set(command.parameters), name


class _NoEvents:
    """An event loop for which nothing happens: each test reads the ports itself."""

    def watch(self, port):
        pass

    def wake(self, port):
        pass

    def hang_up(self, port):
        port.close()


@pytest.fixture
def commands():
    commands = Commands(Schedule(), ask=lambda fault, frame, answer: None, cards=_NoEvents())
    commands.do_add_segment(segment="lan")
    commands.do_add_link(segment="lan", link="a")
    return commands


@pytest.fixture
def path(commands, tmp_path):
    """Where a port listens."""
    path = tmp_path / "a.sock"
    commands.do_open_port(port=str(path))
    yield path
    commands.do_close_port(port=str(path))


@pytest.fixture
def card(commands, path):
    """A card that is connected to the port and has no cable yet."""
    card = Card(path)
    commands._ports[str(path)].accept()
    yield card
    card.close()


def test_what_a_card_sent_before_it_gets_a_cable_reaches_nobody(commands, path, card):
    port = commands._ports[str(path)]
    whole = to_wire(frame(EVERYBODY, mac(1), b"before"))
    card.socket.sendall(whole + whole[:10])
    commands.do_attach(segment="lan", link="a", port=str(path))
    assert port.read() is None
    card.socket.sendall(whole[10:] + whole)
    assert port.read() == whole, "the frame that was begun before is lost, and the next one is not"


def test_a_card_whose_bytes_cannot_be_frames_is_hung_up_when_it_gets_a_cable(commands, path, card):
    """The event loop may hear of the order first, and then nothing more of the card."""
    card.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    commands.do_attach(segment="lan", link="a", port=str(path))
    with pytest.raises(EOFError):
        card.receive(timeout=0.1)
