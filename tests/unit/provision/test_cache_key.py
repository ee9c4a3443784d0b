"""Whatever a guest can see changes the key of its template; what it cannot see does not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.hypervisor.protocol import HostFacts
from pytest_kvm.provision.cache_key import machine_facts
from pytest_kvm.spec.network import declare_network
from tests.unit.provision.key_cases import MACHINE, RICH, image, key

# ---------------------------------------------------------------- each field of each class


def _titled(text):
    def hook(domain):
        ET.SubElement(domain, "description").text = text
        return domain

    return hook


SEEN = {
    kvm.GuestSpec: {
        "memory": ("512MiB", "1GiB"),
        "vcpus": (1, 2),
        "cpu": (None, "Nehalem"),
        "disks": ([], [kvm.Disk(size="1GiB")]),
        "nics": ([], [kvm.Nic()]),
        "root_size": (None, "9GiB"),
        "packages": (["nginx"], ["curl"]),
        "units": (["a.service"], ["b.service"]),
        "prepare": (["touch /a"], ["touch /b"]),
        "hostname": (None, "placeholder"),
        "timezone": (None, "Asia/Tokyo"),
        "cloud_init": (kvm.CloudInit(), kvm.CloudInit(run_commands=["true"])),
        "login": ("root", "alice"),
        "internet": (False, True),
        "boot": ("direct", "firmware"),
        "firmware": ("bios", "uefi"),
        "kernel": ("{folder}/kernel", "{folder}/other"),
        "initrd": ("{folder}/kernel", "{folder}/other"),
        "cmdline": (None, "root=/dev/vda1"),
        "cmdline_extra": ("", "quiet"),
        "console": ("serial", "virtio"),
        "xml": (_titled("a"), _titled("b")),
    },
    kvm.Disk: {
        "size": ("1GiB", "2GiB"),
        "file": ("{folder}/disk", "{folder}/other"),
        "bus": ("virtio", "scsi"),
        "format": ("qcow2", "raw"),
        "serial": (None, "data"),
        "readonly": (False, True),
    },
    kvm.Nic: {
        "network": ("a", "b"),
        "bridge": ("a", "b"),
        "mac": (None, "52:54:00:00:01:00"),
        "model": ("virtio", "e1000e"),
        "link": ("up", "down"),
        "queues": (1, 2),
        "dhcp": (True, False),
    },
    kvm.NetworkSpec: {},
    kvm.CloudInit: {
        "users": ([kvm.User("a")], [kvm.User("b")]),
        "files": ([kvm.File("/a")], [kvm.File("/b")]),
        "run_commands": (["a"], [["a"]]),
        "user_data": ({"a": 1}, {"a": 2}),
        "network_config": ({"a": 1}, {"a": 2}),
        "vendor_data": ({"a": 1}, {"a": 2}),
        "datasource": ("nocloud", "configdrive"),
    },
    kvm.User: {
        "name": ("a", "b"),
        "sudo": (True, False),
        "groups": (["adm"], ["sudo"]),
        "shell": ("/bin/bash", "/bin/sh"),
        "authorized_keys": (["ssh-ed25519 A"], ["ssh-ed25519 B"]),
    },
    kvm.File: {
        "path": ("/a", "/b"),
        "content": ("a", b"a"),
        "mode": (0o644, 0o600),
        "owner": ("root:root", "www-data"),
    },
    kvm.Script: {
        "content": ("a", "b"),
        "file": ("{folder}/kernel", "{folder}/other"),
        "interpreter": (None, "/bin/bash"),
    },
    kvm.HostFile: {
        "source": ("{folder}/kernel", "{folder}/other"),
        "path": ("/a", "/b"),
        "mode": (None, 0o600),
        "owner": ("root:root", "1000"),
    },
}
"""Two values of every field that a guest can see."""

UNSEEN = {
    kvm.GuestSpec: {
        "image": ("debian-12", "debian-13"),  # a name; what it leads to is an argument
        "identity": ("unique", "shared"),
        "reset": ("always", "never"),
        "kernel_errors": ("fail", "ignore"),
        "kernel_warnings": ("fail", "ignore"),
        "allow_kernel_errors": ([], ["lockup"]),
        "gates": (kvm.Gates(), kvm.Gates(journal="err")),
        "boot_timeout": (None, 60.0),
    },
    # A clone is told its addresses, and its cards are set up, after it was started.
    kvm.Nic: {"address": (None, "10.1.0.5"), "address6": (None, "fd00:1::5")},
    kvm.NetworkSpec: {
        "subnet": ("10.1.0.0/24", None),
        "subnet6": ("auto", None),
        "mtu": (1500, 9000),
        "backend": ("switch", "libvirt"),
        "forward": ("isolated", "nat"),
        "bridge": ("br0", "br1"),
        "virtualport": (None, "openvswitch"),
        "vlan": (None, 5),
        "trunk": ((), (6, 7)),
        "inbound": (None, "10Mbit"),
        "outbound": (None, "10Mbit"),
    },
}

NEEDED = {
    kvm.Disk: {"size": "1GiB"},
    kvm.User: {"name": "a"},
    kvm.File: {"path": "/a"},
    kvm.Script: {"content": "true"},
    kvm.HostFile: {"source": "{folder}/kernel", "path": "/a"},
}
LAN = declare_network("lan", kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00:1::/64"))
NEEDED_BY = {
    (kvm.Nic, "address"): {"network": LAN},
    (kvm.Nic, "address6"): {"network": LAN},
    (kvm.Nic, "queues"): {"network": "default"},
    (kvm.NetworkSpec, "virtualport"): {"bridge": "br0"},
    (kvm.NetworkSpec, "vlan"): {"bridge": "br0"},
    (kvm.NetworkSpec, "trunk"): {"bridge": "br0"},
}
INSTEAD = {(kvm.Disk, "file"): "size", (kvm.Script, "file"): "content"}

WITHIN = {
    kvm.GuestSpec: lambda spec: spec,
    kvm.Disk: lambda disk: kvm.GuestSpec(disks=[disk]),
    kvm.Nic: lambda nic: kvm.GuestSpec(nics=[nic]),
    kvm.NetworkSpec: lambda spec: kvm.GuestSpec(nics=[kvm.Nic(declare_network("lan", spec))]),
    kvm.CloudInit: lambda config: kvm.GuestSpec(cloud_init=config),
    kvm.User: lambda user: kvm.GuestSpec(cloud_init=kvm.CloudInit(users=[user])),
    kvm.File: lambda file: kvm.GuestSpec(cloud_init=kvm.CloudInit(files=[file])),
    kvm.Script: lambda script: kvm.GuestSpec(prepare=[script]),
    kvm.HostFile: lambda file: kvm.GuestSpec(prepare=[file]),
}
FIELDS = [(cls, field.name) for cls in WITHIN for field in dataclasses.fields(cls)]


@pytest.fixture
def folder(tmp_path):
    for name in ("kernel", "disk", "other"):
        (tmp_path / name).write_text(name.ljust(4096))
    return tmp_path


def _keys(cls, name, values, folder):
    """Return the keys of guests that differ in one field."""

    def made(value):
        fields = NEEDED.get(cls, {}) | NEEDED_BY.get((cls, name), {}) | {name: value}
        fields.pop(INSTEAD.get((cls, name)), None)
        if name == "initrd":
            fields["kernel"] = "{folder}/kernel"
        placed = {
            field: each.format(folder=folder) if isinstance(each, str) else each
            for field, each in fields.items()
        }
        return WITHIN[cls](cls(**placed))

    return [key(made(value)) for value in values]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_is_seen_by_the_guest_or_is_known_not_to_be(cls, name, folder):
    """A new field fails here until somebody has said which of both it is."""
    if name in SEEN[cls]:
        one, other = _keys(cls, name, SEEN[cls][name], folder)
        assert one != other
    else:
        one, other = _keys(cls, name, UNSEEN[cls][name], folder)
        assert one == other


def test_every_class_of_specs_is_looked_at():
    values = (getattr(kvm, name) for name in kvm.__all__)
    classes = {each for each in values if dataclasses.is_dataclass(each) and ".spec." in each.__module__}
    # An ImageRef leads to an image, and that is an argument; gates change no guest.
    assert classes == {*WITHIN, kvm.ImageRef, kvm.Gates}


def test_what_a_card_on_a_segment_has_there_is_not_seen():
    other = declare_network("other", kvm.NetworkSpec())
    cards = [
        kvm.Nic(LAN),
        kvm.Nic(other),
        kvm.Nic(LAN, mac="52:54:00:00:00:01"),
        kvm.Nic(LAN, link="down"),
        kvm.Nic(LAN, dhcp=True),
    ]
    assert len({key(kvm.GuestSpec(nics=[card])) for card in cards}) == 1
    assert key(kvm.GuestSpec(nics=[kvm.Nic(LAN, model="e1000e")])) != key(kvm.GuestSpec(nics=cards[:1]))


def test_templates_are_kept_apart_by_the_mac_addresses_that_a_saved_state_holds():
    spec = kvm.GuestSpec(nics=[kvm.Nic(), kvm.Nic(LAN, model="e1000e")])
    one, other = ({1: f"52:54:00:00:00:0{number}"} for number in (1, 2))
    assert key(spec, tied_macs=one) == key(spec, tied_macs=dict(one))
    assert key(spec, tied_macs=one) != key(spec, tied_macs=other)


# ---------------------------------------------------------------- any spec

sizes = st.integers(64, 4096).map("{}MiB".format)
words = st.text("abc .;|'\"$\n", min_size=1, max_size=6).filter(str.strip)
files = st.builds(
    kvm.File,
    st.sampled_from(["/etc/a", "/opt/b"]),
    words | st.binary(max_size=4),
    mode=st.sampled_from([0o644, 0o4755]),
)
cloud_inits = st.builds(
    kvm.CloudInit,
    users=st.lists(st.builds(kvm.User, st.just("bob"), sudo=st.booleans()), max_size=1),
    files=st.lists(files, max_size=2, unique_by=lambda file: file.path),
    run_commands=st.lists(words | st.lists(words, min_size=1, max_size=2), max_size=2),
    user_data=st.none()
    | st.dictionaries(st.sampled_from(["locale", "user"]), st.text(), min_size=1, max_size=2),
    datasource=st.sampled_from(["nocloud", "configdrive"]),
)
disks = st.builds(
    kvm.Disk,
    size=sizes,
    bus=st.sampled_from(["virtio", "scsi", "sata", "usb"]),
    format=st.sampled_from(["qcow2", "raw"]),
    readonly=st.booleans(),
)
nics = st.builds(
    kvm.Nic,
    st.none() | st.sampled_from(["default", "lan"]),
    model=st.sampled_from(["virtio", "e1000e"]),
    link=st.sampled_from(["up", "down"]),
    dhcp=st.booleans(),
)
steps = words | st.lists(words, min_size=1, max_size=3) | st.builds(kvm.Script, words)
specs = st.builds(
    kvm.GuestSpec,
    st.sampled_from(["debian-12", "debian-13"]),
    memory=sizes,
    vcpus=st.integers(1, 4),
    cpu=st.none() | st.sampled_from(["Nehalem", "Skylake-Server"]),
    disks=st.lists(disks, max_size=3),
    nics=st.lists(nics, max_size=3),
    root_size=st.none() | sizes,
    packages=st.lists(st.sampled_from(["nginx", "curl", "vim"]), max_size=3),
    units=st.lists(st.sampled_from(["a.service", "b.service"]), max_size=2),
    prepare=st.lists(steps, max_size=3),
    hostname=st.none() | st.sampled_from(["web", "db.example.org"]),
    timezone=st.none() | st.sampled_from(["UTC", "Asia/Tokyo"]),
    cloud_init=cloud_inits,
    login=st.sampled_from(["root", "alice"]),
    internet=st.booleans(),
    cmdline_extra=st.sampled_from(["", "quiet", "a=1 b"]),
    console=st.sampled_from(["serial", "virtio"]),
    identity=st.sampled_from(["auto", "unique", "shared"]),
    reset=st.sampled_from(["auto", "always", "never"]),
    boot_timeout=st.none() | st.floats(1, 100),
)


def _as_seen(spec):
    return dataclasses.replace(spec, image=None, boot_timeout=None, identity="auto", reset="auto")


@settings(max_examples=150)
@given(specs, specs, st.sampled_from([field.name for field in dataclasses.fields(kvm.GuestSpec)]))
def test_a_key_changes_with_a_field_exactly_if_the_guest_sees_it(spec, other, name):
    changed = dataclasses.replace(spec, **{name: getattr(other, name)})
    assert (key(changed) == key(spec)) == (_as_seen(changed) == _as_seen(spec))


@settings(max_examples=50)
@given(specs, specs)
def test_guests_that_differ_anywhere_share_no_template(one, other):
    assume(_as_seen(one) != _as_seen(other))
    assert key(one) != key(other)


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_every_process_makes_the_same_key(project_root, seed):
    argv = [sys.executable, "-m", "tests.unit.provision.key_cases"]
    done = subprocess.run(
        argv,
        cwd=project_root,
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == key(RICH)


def test_what_means_the_same_has_the_same_key():
    assert key(kvm.GuestSpec(memory="1GiB")) == key(kvm.GuestSpec(memory="1024 MiB"))
    assert key(kvm.GuestSpec(boot="auto")) == key(kvm.GuestSpec(boot="direct"))


# ---------------------------------------------------------------- image and machine


@pytest.mark.parametrize("part", ["disk", "kernel", "initrd", "cmdline"])
def test_another_image_is_another_key(part):
    assert key(kvm.GuestSpec(), of=image(**{part: "0" * 64})) != key(kvm.GuestSpec())


def test_only_what_is_loaded_of_an_image_counts():
    spec = kvm.GuestSpec(boot="firmware")
    assert key(spec, of=image(kernel="0" * 64)) == key(spec)


def test_one_image_under_two_names_is_one():
    assert key(kvm.GuestSpec(), of=image(name="mine")) == key(kvm.GuestSpec())


@pytest.mark.parametrize("fact", [field.name for field in dataclasses.fields(MACHINE)])
def test_another_machine_is_another_key(fact):
    value = {"accel": "kvm", "firmware": ("another",)}.get(fact, "another")
    assert key(kvm.GuestSpec(), machine=dataclasses.replace(MACHINE, **{fact: value})) != key(kvm.GuestSpec())


FACTS = HostFacts(
    uri="qemu:///embed",
    hypervisor_version="7.2.22",
    library_version="9.0.0",
    emulator=sys.executable,
    kvm=True,
    uefi=True,
)


def test_a_guests_processor_is_the_hosts_only_under_kvm():
    translated, virtual = (machine_facts(FACTS, accel=accel) for accel in ("tcg", "kvm"))
    assert (translated.processor, translated.kernel) == ("", "")
    assert virtual.processor
    assert virtual.kernel == os.uname().release


def test_an_emulator_that_was_replaced_is_another_machine(tmp_path):
    emulator = tmp_path / "qemu"
    emulator.write_text("one")
    facts = dataclasses.replace(FACTS, emulator=str(emulator))
    before = machine_facts(facts, accel="tcg")
    assert machine_facts(facts, accel="tcg") == before
    os.utime(emulator, ns=(0, 1))
    assert machine_facts(facts, accel="tcg").emulator != before.emulator


# ---------------------------------------------------------------- files and hooks


def test_a_file_counts_by_content_not_by_name(folder):
    (folder / "copy").write_bytes((folder / "kernel").read_bytes())
    for make in (
        lambda name: kvm.GuestSpec(kernel=folder / name),
        lambda name: kvm.GuestSpec(prepare=[kvm.Script(file=folder / name)]),
        lambda name: kvm.GuestSpec(prepare=[kvm.HostFile(folder / name, "/opt/x")]),
    ):
        assert key(make("kernel")) == key(make("copy")) != key(make("other"))


def test_into_a_folder_a_file_goes_under_its_own_name(folder):
    (folder / "copy").write_bytes((folder / "kernel").read_bytes())
    one, other = (
        kvm.GuestSpec(prepare=[kvm.HostFile(folder / name, "/opt/")]) for name in ("kernel", "copy")
    )
    assert key(one) != key(other)


def test_a_disk_file_counts_with_what_it_stands_on(folder):
    base, overlay = folder / "base.raw", folder / "overlay.qcow2"
    base.write_bytes(b"a" * 65536)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.name, overlay]
    subprocess.run(argv, check=True)
    spec = kvm.GuestSpec(disks=[kvm.Disk(file=overlay)])
    before = key(spec)
    base.write_bytes(b"b" * 65536)
    assert key(spec) != before


def test_a_large_file_that_changes_is_read_again(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"a" * (2 << 20))
    spec = kvm.GuestSpec(disks=[kvm.Disk(file=path)])
    before = key(spec)
    assert key(spec) == before
    path.write_bytes(b"b" * (2 << 20))
    os.utime(path, ns=(0, 1))
    assert key(spec) != before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: kvm.GuestSpec(kernel=path), "GuestSpec.kernel: {} does not exist"),
        (lambda path: kvm.GuestSpec(disks=[kvm.Disk(file=path)]), "GuestSpec.disks[0].file: {} does not"),
    ],
    ids=["kernel", "disk"],
)
def test_a_missing_file_is_a_mistake_in_the_spec(tmp_path, make, message):
    path = tmp_path / "missing"
    with pytest.raises(SpecError) as caught:
        key(make(path))
    assert caught.value.brief.startswith(message.format(path))


def test_a_hook_counts_by_what_it_makes():
    def same(domain):
        return domain

    assert key(kvm.GuestSpec(xml=same)) == key(kvm.GuestSpec())


def test_a_file_that_a_hook_names_counts_by_content(folder):
    def with_file(domain):
        disk = ET.SubElement(domain.find("devices"), "disk", type="file", device="cdrom")
        ET.SubElement(disk, "source", file=str(folder / "disk"))
        ET.SubElement(disk, "target", dev="sda", bus="sata")
        return domain

    before = key(kvm.GuestSpec(xml=with_file))
    (folder / "disk").write_text("something else")
    assert key(kvm.GuestSpec(xml=with_file)) != before
