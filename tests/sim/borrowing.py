"""Several processes, each with a real reference counter, joined by a simulated network.

``Process`` speaks the protocol of owners and borrowers (``_core/borrows.pyx`` and the replies of
``_core/worker.pyx``) and leaves every decision about lifetimes to its ``RefTable``. Messages of one channel
arrive in order, everything else in any order; what a dead process had sent still arrives, what was on its way
to it does not. Each process hears of a death at a moment of its own, after what the dead one had sent to it.
One seed decides everything.

``World.reachable`` is the checker: it works on the programs' refs alone, never on counts, and says what may
not be gone.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from ftray._core.refs import RefTable

# Protocols that are wrong, to see that the checker notices: registrations travel with replies even where
# calls run beside each other; what releases protection does not wait for registrations; grants inside a value
# that nobody waits for any more are not given back.
FLAWS = ("always with the reply", "releases do not wait", "unwanted values are ignored")


@dataclass
class Call:
    """A task or method call; open until its caller has handled the reply."""

    caller: int
    executor: int
    result: int
    arguments: list[int]  # refs: top-level and nested
    brought: list[int] = field(default_factory=list)  # what the executor can unpickle from them
    open: bool = True
    asked_by: list[int] = field(default_factory=list)  # borrowers that wait for the result


@dataclass
class Message:
    kind: str
    call: Call | None = None
    obj: int = 0
    who: int = 0
    count: int = 0
    value: list[int] = field(default_factory=list)  # refs inside
    safe: list[bool] = field(default_factory=list)  # was the sender entitled to each of them?
    borrows: list[int] = field(default_factory=list)  # "we keep these refs of yours"


class Process:
    """A program with refs and the protocol below it."""

    def __init__(self, world: World, pid: int, concurrent: bool) -> None:
        self.world = world
        self.pid = pid
        self.concurrent = concurrent  # runs several calls beside each other
        self.table = RefTable()
        self.alive = True
        self.mine: Counter[int] = Counter()  # refs that the program holds (dead ones are taken out at once)
        self.queued: deque[Call] = deque()
        self.running: list[Call] = []
        self.calls: list[Call] = []  # its own, open
        self.values: dict[int, list[int]] = {}  # of which objects it has the value, and the refs inside
        self.fetching: set[int] = set()
        self.dead: set[int] = set()  # of whom it knows that they are
        self.adds: Counter[int] = Counter()  # BORROW_ADDs without an answer, by owner
        self.gated: deque[tuple[int, Message]] = deque()

    # --- what a program does

    def usable(self) -> list[int]:
        """Refs that the program can name now: its own and the arguments of what it runs."""
        return sorted(set(self.mine) | {obj for call in self.running for obj in call.brought})

    def put(self, obj: int, inside: list[int]) -> None:
        self.world.owner[obj] = self.pid
        self.table.own(obj)
        self.table.in_shared_memory(obj, self.pid, obj)
        self.world.blocks.append(obj)
        for inner in inside:
            self.table.contain(obj, inner)
        self.values[obj] = inside
        self.mine[obj] += 1

    def take(self, obj: int) -> None:
        """The program gets one more ref."""
        self.table.borrow(obj, self.world.owner[obj])
        self.mine[obj] += 1

    def not_lost(self, refs: list[int]) -> list[int]:
        """Refs that come to their owner after it forgot the object (a death took the protection) are dead."""
        known = self.table.known()
        lost = {obj for obj in refs if self.world.owner[obj] == self.pid and obj not in known}
        if lost and not self.world.deaths:
            self.world.fail(f"{self.pid} gets refs of its own that it has forgotten: {lost}")
        return [obj for obj in refs if obj not in lost]

    def let_go(self, obj: int) -> None:
        self.mine -= Counter({obj: 1})
        self.table.drop(obj)

    def submit(self, call: Call) -> None:
        self.world.owner[call.result] = self.pid
        self.table.own(call.result)
        self.mine[call.result] += 1
        for obj in [call.result, *call.arguments]:
            self.table.hold(obj)
        self.calls.append(call)
        call.brought = list(call.arguments)
        for obj in call.arguments:
            call.brought += self.values.get(obj, [])  # an argument whose value is here goes along by value
        self.send(call.executor, Message("task", call))

    def start(self) -> None:
        """Unpickle the arguments of the next call."""
        call = self.queued.popleft()
        call.brought = self.not_lost(call.brought)
        for obj in call.brought:
            self.table.borrow(obj, self.world.owner[obj])
        self.running.append(call)

    def finish(self, call: Call, keep: list[int], result: list[int]) -> None:
        """The call returns: it keeps some of its refs, drops the others, gives some back in the result."""
        self.running.remove(call)
        for obj in keep:
            self.take(obj)
        for obj in result:
            self.table.ref(obj)
        for obj in call.brought:
            self.table.drop(obj)
        self.table.drain()
        self.carry_out()
        if call.caller not in self.dead:
            self.reply(call, result)
        for obj in result:
            self.table.drop(obj)

    def reply(self, call: Call, result: list[int]) -> None:
        safe = [self.world.entitled(self.pid, obj) for obj in result]
        for obj in result:
            self.grant(obj, call.caller)
        borrows = []
        if not self.concurrent or self.world.flaw == "always with the reply":
            # Safe because the caller, who owns them, holds what this call brought until it has this reply. A
            # ref that another call brought, whose reply may overtake this one, needs a registration with an
            # answer.
            unregistered = sorted(self.table.unregistered())
            borrows = [obj for obj in unregistered if self.world.owner[obj] == call.caller]
        for obj in borrows:
            self.table.register(obj)
        for obj in sorted(self.table.unregistered()):
            self.table.register(obj)
            self.add(obj, self.pid)
        self.send_gated(call.caller, Message("reply", call, value=result, safe=safe, borrows=borrows))

    def fetch(self, obj: int) -> None:
        owner = self.world.owner[obj]
        if obj in self.values or obj in self.fetching or owner == self.pid or owner in self.dead:
            return
        self.fetching.add(obj)
        self.send(owner, Message("get", obj=obj))

    # --- the protocol

    def send(self, to: int, message: Message) -> None:
        if to not in self.dead and self.world.processes[to].alive:
            self.world.channels.setdefault((self.pid, to), deque()).append(message)

    def send_gated(self, to: int, message: Message) -> None:
        """What releases protection waits until our own registrations are known to their owners."""
        if self.adds.total() == 0 or self.world.flaw == "releases do not wait":
            self.send(to, message)
        else:
            self.gated.append((to, message))

    def open_gate(self) -> None:
        while self.gated and self.adds.total() == 0:
            self.send(*self.gated.popleft())

    def add(self, obj: int, borrower: int) -> None:
        owner = self.world.owner[obj]
        if owner not in self.dead:
            self.adds[owner] += 1
            self.send(owner, Message("add", obj=obj, who=borrower))

    def grant(self, obj: int, receiver: int) -> None:
        if self.world.owner[obj] == self.pid:
            self.count(obj, receiver, 1)
        elif self.world.owner[obj] != receiver and not self.table.lost(obj):
            self.world.promised[obj, receiver, self.pid] += 1
            self.add(obj, receiver)

    def count(self, obj: int, borrower: int, n: int) -> None:
        self.world.registered[obj, borrower] += n
        self.table.borrower(obj, borrower, n)

    def accept(self, source: int, holder: int | None, value: list[int]) -> None:
        """Refs that came with grants in our name, as part of the value of `holder` or for nothing."""
        value = self.not_lost(value)
        for inner in value:
            self.world.promised[inner, self.pid, source] -= 1
            self.table.borrow(inner, self.world.owner[inner])
            if self.world.owner[inner] != self.pid and not self.table.lost(inner):
                self.table.register(inner)
            if holder is not None:
                self.table.contain(holder, inner)
            self.table.drop(inner)
        if holder is not None:
            self.values[holder] = value
        self.table.drain()

    def answer(self, obj: int, to: int) -> None:
        value = self.values[obj]
        safe = [self.world.entitled(self.pid, inner) for inner in value]
        for inner in value:
            self.grant(inner, to)
        self.send_gated(to, Message("value", obj=obj, value=value, safe=safe))

    def complete(self, source: int, call: Call, value: list[int]) -> None:
        """A call of ours has its result; everything that it held is let go."""
        call.open = False
        self.calls.remove(call)
        self.accept(source, call.result, value)
        for borrower in call.asked_by:
            if borrower not in self.dead:
                self.answer(call.result, borrower)
        for obj in [*call.arguments, call.result]:
            self.table.unhold(obj)

    def carry_out(self) -> None:
        """What the counter decided."""
        for kind, obj, n, _ in self.table.commands():
            self.world.note(f"{self.pid}: {kind} {obj}")
            owner = self.world.owner[obj]
            self.values.pop(obj, None)
            self.fetching.discard(obj)
            if kind == "borrow_remove" and owner not in self.dead:
                self.send_gated(owner, Message("remove", obj=obj, count=n))
            elif kind == "free_block":
                self.world.freed[obj] += 1
        known = self.table.known()
        for obj in [obj for obj in self.values if obj not in known]:
            del self.values[obj]
        self.fetching &= known

    # --- what arrives

    def on_task(self, source: int, m: Message) -> None:
        assert m.call
        self.queued.append(m.call)

    def on_reply(self, source: int, m: Message) -> None:
        assert m.call
        known = self.table.known()
        for obj in m.borrows:
            if obj in known:
                self.count(obj, source, 1)
        self.complete(source, m.call, m.value)

    def on_get(self, source: int, m: Message) -> None:
        pending = [call for call in self.calls if call.result == m.obj]
        if pending:
            pending[0].asked_by.append(source)
        elif m.obj in self.values:
            self.answer(m.obj, source)
        else:
            self.send(source, Message("unknown", obj=m.obj))

    def on_value(self, source: int, m: Message) -> None:
        wanted = m.obj in self.fetching and m.obj not in self.values
        self.fetching.discard(m.obj)
        if not wanted and self.world.flaw == "unwanted values are ignored":
            return
        self.accept(source, m.obj if wanted else None, m.value)

    def on_unknown(self, source: int, m: Message) -> None:
        self.fetching.discard(m.obj)
        if not self.world.deaths and m.obj in self.table.known():
            self.world.fail(f"{self.pid} has a ref to {m.obj}, but its owner does not know it")

    def on_add(self, source: int, m: Message) -> None:
        if m.obj in self.table.known() and m.who not in self.dead:
            self.count(m.obj, m.who, 1)
        self.send(source, Message("ack"))

    def on_ack(self, source: int, m: Message) -> None:
        self.adds[source] -= 1
        self.open_gate()

    def on_remove(self, source: int, m: Message) -> None:
        if m.obj in self.table.known():
            self.count(m.obj, source, -m.count)

    def on_death(self, who: int) -> None:
        """Told by the node, after everything that `who` had sent to us."""
        self.dead.add(who)
        for key in [
            key for key in self.world.registered if key[1] == who and self.world.owner[key[0]] == self.pid
        ]:
            del self.world.registered[key]
        self.table.died(who)
        self.carry_out()
        self.queued = deque(
            call for call in self.queued if call.caller != who
        )  # not begun: nobody wants it any more
        for call in [call for call in self.calls if call.executor == who]:
            self.complete(who, call, [])
        del self.adds[who]
        self.open_gate()
        self.fetching = {obj for obj in self.fetching if self.world.owner[obj] != who}


class World:
    """The network, the dice and the checker."""

    def __init__(self, seed: int, n_processes: int, deaths: int, flaw: str = "") -> None:
        self.random = random.Random(seed)
        self.seed = seed
        if flaw not in ("", *FLAWS):
            raise ValueError(f"flaw {flaw!r} is none of {FLAWS}")
        self.flaw = flaw
        pids = range(1, n_processes + 1)
        self.processes = {pid: Process(self, pid, concurrent=self.random.random() < 0.5) for pid in pids}
        self.deaths_left = deaths
        self.deaths: list[int] = []
        self.untold: list[tuple[int, int]] = []  # (who is to hear, who died)
        self.channels: dict[tuple[int, int], deque[Message]] = {}
        self.owner: dict[int, int] = {}
        self.contents: dict[int, list[int]] = {}  # refs inside the value of each object
        self.promised: Counter[tuple[int, int, int]] = Counter()  # (object, receiver, sender): on its way
        self.registered: Counter[tuple[int, int]] = Counter()  # (object, borrower), as the owners were told
        self.blocks: list[int] = []  # objects in shared memory
        self.freed: Counter[int] = Counter()
        self.last_object = 1000
        self.story: deque[str] = deque(maxlen=200)

    def note(self, what: str) -> None:
        self.story.append(what)

    def fail(self, what: str) -> None:
        raise AssertionError("\n".join([*self.story, f"seed {self.seed}: {what}"]))

    def alive(self) -> list[Process]:
        return [p for p in self.processes.values() if p.alive]

    def new_object(self) -> int:
        self.last_object += 1
        return self.last_object

    def some(self, refs: list[int], most: int) -> list[int]:
        return self.random.sample(refs, min(len(refs), self.random.randint(0, most)))

    # --- one random event

    def step(self) -> None:
        p = self.random.choice(self.alive())
        events = [
            (4, self.put),
            (4, self.let_go),
            (2, self.unpack),
            (5, self.submit),
            (5, self.start),
            (5, self.finish),
            (3, self.fetch),
            (2, self.drain),
            (1, self.copy),
        ]
        if self.untold and self.random.random() < 0.1:
            self.tell_of_death(*self.untold.pop(self.random.randrange(len(self.untold))))
        elif self.random.random() < 0.5 and self.deliver():
            pass
        elif self.deaths_left and self.random.random() < 0.01:
            self.kill(p)
        else:
            weights, actions = zip(*events, strict=True)
            self.random.choices(actions, weights)[0](p)
        for each in self.alive():
            each.carry_out()
        self.check()

    def put(self, p: Process) -> None:
        obj, inside = self.new_object(), self.some(p.usable(), 2)
        self.note(f"{p.pid}: put {obj} with {inside}")
        self.contents[obj] = inside
        p.put(obj, inside)

    def leads_to(self, obj: int, other: int) -> bool:
        """Reference counting does not free cycles: no result may contain a way to itself."""
        return obj == other or any(self.leads_to(inner, other) for inner in self.contents.get(obj, []))

    def let_go(self, p: Process) -> None:
        if p.mine:
            obj = self.random.choice(sorted(p.mine))
            self.note(f"{p.pid}: lets go of {obj}")
            p.let_go(obj)

    def copy(self, p: Process) -> None:
        if refs := p.usable():
            obj = self.random.choice(refs)
            self.note(f"{p.pid}: one more ref to {obj}")
            p.take(obj)

    def unpack(self, p: Process) -> None:
        """The program reads a value and keeps a ref that it found inside."""
        readable = [obj for obj in p.usable() if p.values.get(obj)]
        if readable:
            inner = self.random.choice(p.values[self.random.choice(readable)])
            self.note(f"{p.pid}: unpacks {inner}")
            p.take(inner)

    def submit(self, p: Process) -> None:
        others = [q.pid for q in self.processes.values() if q is not p and q.pid not in p.dead]
        if others and len(p.calls) < 6:
            executor, arguments = self.random.choice(others), self.some(p.usable(), 3)
            call = Call(p.pid, executor, self.new_object(), arguments)
            self.note(f"{p.pid}: calls {executor} with {call.arguments}, result {call.result}")
            p.submit(call)

    def start(self, p: Process) -> None:
        if p.queued and (p.concurrent or not p.running):
            p.start()
            self.note(f"{p.pid}: starts the call for {p.running[-1].result}")

    def finish(self, p: Process) -> None:
        if p.running:
            call = self.random.choice(p.running)
            fit = [obj for obj in p.usable() if not self.leads_to(obj, call.result)]
            keep, result = self.some(p.usable(), 2), self.some(fit, 2)
            self.contents[call.result] = result
            self.note(f"{p.pid}: ends the call for {call.result}, keeps {keep}, returns {result}")
            p.finish(call, keep, result)

    def fetch(self, p: Process) -> None:
        if refs := p.usable():
            obj = self.random.choice(refs)
            self.note(f"{p.pid}: gets {obj}")
            p.fetch(obj)

    def drain(self, p: Process) -> None:
        p.table.drain()

    def deliver(self, key: tuple[int, int] | None = None) -> bool:
        full = sorted(key for key, queue in self.channels.items() if queue)
        if key is None and not full:
            return False
        source, to = key or self.random.choice(full)
        message = self.channels[source, to].popleft()
        self.note(
            f"{source} -> {to}: {message.kind} {message.obj or ''} {message.value or ''}"
            f" {message.borrows or ''}"
        )
        getattr(self.processes[to], "on_" + message.kind)(source, message)
        return True

    def kill(self, p: Process) -> None:
        if len(self.alive()) == 1:
            return
        self.note(f"{p.pid} dies")
        p.alive = False
        self.deaths_left -= 1
        self.deaths.append(p.pid)
        self.untold = [(hears, died) for hears, died in self.untold if hears != p.pid]
        self.untold += [(q.pid, p.pid) for q in self.alive()]
        for (_, to), queue in self.channels.items():
            if to == p.pid:
                queue.clear()

    def tell_of_death(self, hears: int, died: int) -> None:
        while self.channels.get((died, hears)):
            self.deliver((died, hears))
        self.note(f"{hears} hears of the death of {died}")
        self.processes[hears].on_death(died)

    # --- safety

    def entitled(self, pid: int, obj: int, seen: frozenset[int] = frozenset()) -> bool:
        """Is the owner bound to keep the object for this process?

        It is when it owns the object, when the owner has been told, and while an open call of somebody
        entitled brought the ref. Only a death can take that away: who got a ref in a call of a process that
        died before the new borrower was registered has lost it (`get` then says so).
        """
        if self.owner[obj] == pid or self.registered[obj, pid] > 0:
            return True
        return any(
            call.open
            and call.executor == pid
            and obj in call.brought
            and self.processes[call.caller].alive
            and call.caller not in seen
            and self.entitled(call.caller, obj, seen | {pid})
            for p in self.processes.values()
            for call in p.calls
        )

    def roots(self) -> list[tuple[int, int]]:
        """What programs can name directly, and what is on its way to them: (process, object)."""
        found = []
        for p in self.alive():
            found += [(p.pid, obj) for obj in p.usable()]
            found += [(p.pid, obj) for call in p.calls for obj in [call.result, *call.arguments]]
        on_the_way = [(to, m) for (_, to), queue in self.channels.items() for m in queue]
        on_the_way += [(to, m) for p in self.alive() for to, m in p.gated]
        for to, m in on_the_way:
            if self.processes[to].alive:
                found += [(self.owner[obj], obj) for obj, ok in zip(m.value, m.safe, strict=True) if ok]
        return found

    def reachable(self) -> set[tuple[int, int]]:
        """Every (living process, object) such that the process must still know the object."""
        reached: set[tuple[int, int]] = set()
        todo = self.roots()
        while todo:
            pid, obj = todo.pop()
            p = self.processes[pid]
            if (pid, obj) in reached or not p.alive:
                continue
            reached.add((pid, obj))
            todo += [(pid, inner) for inner in p.values.get(obj, [])]
            if self.entitled(pid, obj):
                todo.append((self.owner[obj], obj))
            elif not self.deaths:
                self.fail(f"{pid} has a ref to {obj} that nothing protects")
        return reached

    def check(self) -> None:
        known = {p.pid: p.table.known() for p in self.alive()}
        for pid, obj in self.reachable():
            if obj not in known[pid]:
                self.fail(f"{pid} has forgotten {obj}, which can still be reached")
        twice = [obj for obj, n in self.freed.items() if n > 1]
        if twice:
            self.fail(f"freed twice: {twice}")

    # --- progress

    def wind_down(self) -> None:
        """Everything arrives, every call ends, every ref is dropped: then no process knows of anything.

        One thing is known to stay until its receiver dies: what a process that died meanwhile had registered
        in somebody else's name, without getting as far as sending it.
        """
        self.deaths_left = 0
        for _ in range(10_000):
            self.quiet_step()
            self.check()
            if not self.busy():
                break
        stays: set[int] = set()
        todo = [obj for (obj, _, sender), n in self.promised.items() if n > 0 and sender in self.deaths]
        while todo:
            stays.add(todo.pop())
            todo += [inner for obj in stays for inner in self.contents.get(obj, []) if inner not in stays]
        for p in self.alive():
            left = p.table.known() - stays
            if left or len(p.table) != len(p.table.known()) or p.adds.total() or p.gated:
                self.fail(
                    f"{p.pid} still has {left}, {p.adds.total()} registrations unanswered,"
                    f" {len(p.gated)} gated"
                )
        stays |= {obj for obj, owner in self.owner.items() if owner in self.deaths}
        kept = [obj for obj in self.blocks if obj not in stays and not self.freed[obj]]
        if kept:
            self.fail(f"blocks that were never given back: {kept}")

    def quiet_step(self) -> None:
        while self.untold:
            self.tell_of_death(*self.untold.pop())
        self.deliver()
        for p in self.alive():
            self.start(p)
            for call in list(p.running):
                p.finish(call, [], [])
            while p.mine:
                p.let_go(next(iter(p.mine)))
            p.table.drain()
            p.carry_out()

    def busy(self) -> bool:
        return any(self.channels.values()) or any(p.running or p.queued or p.calls for p in self.alive())
