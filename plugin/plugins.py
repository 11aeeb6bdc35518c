"""Finding and checking plugins: drivers and hooks, by entry point, from a file or handed over as objects.

They are loaded one by one. One that cannot be imported, has an invalid implementation, a misspelt hook or the name of
one already loaded is refused with a message that names it, its distribution and the reason; the others load. A driver
is imported when it is first asked for. Built-in plugins are found the same way, and first.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from cameleer.driver import Driver, DriverBase
from cameleer.errors import PluginError
from cameleer.log import log

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pluggy import PluginManager

    from cameleer.settings import Settings

    AnyEntry: TypeAlias = "EntryPoint | OwnEntry"

DRIVERS = "cameleer.drivers"
HOOKS = "cameleer.hooks"
OURSELVES = "cameleer"


class MissingExtra(PluginError):
    """A built-in driver whose libraries are not installed; the message says how they are."""


@dataclass(frozen=True, kw_only=True)
class RefusedPlugin:
    """A plugin that was not loaded.

    :ivar group: ``cameleer.drivers`` or ``cameleer.hooks``.
    :ivar distribution: the installed package that it came with; empty for an object or a file.
    :ivar version: of that package.
    """

    name: str
    group: str
    reason: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        kind = "driver" if self.group == DRIVERS else "hook plugin"
        origin = f" (from {self.distribution} {self.version})" if self.distribution else ""
        return f"the {kind} {self.name!r}{origin} was refused: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class FoundDriver:
    """A driver that can be opened; ``entry`` None: handed over as a class."""

    name: str
    entry: AnyEntry | None = None
    cls: type[DriverBase] | None = None

    @property
    def origin(self) -> tuple[str, str]:
        """Distribution and version it came with; empty for a class that was handed over."""
        return _origin(self.entry) if self.entry is not None else ("", "")


class OwnEntry:
    """One of our own entry points. ``importlib.metadata`` costs more to import than a short task takes to run."""

    dist = None

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.value = value

    def load(self) -> Any:
        """Import it."""
        import importlib

        module, _, attribute = self.value.partition(":")
        return getattr(importlib.import_module(module), attribute)


def _own_entry_points(group: str) -> dict[str, str]:
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:  # a zip file, or nothing
            continue
        for name in names:
            if name.startswith(f"{OURSELVES}-") and name.endswith(".dist-info"):
                try:
                    with open(os.path.join(folder, name, "entry_points.txt"), encoding="utf-8") as file:
                        return _section(file.read(), group)
                except OSError:
                    continue
    return {}


def _section(text: str, group: str) -> dict[str, str]:
    lines = text.partition(f"[{group}]\n")[2].partition("[")[0].splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _origin(entry: AnyEntry) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")


def builtin(entry: AnyEntry) -> bool:
    """Whether this is a part of cameleer itself."""
    return entry.value.startswith("cameleer.") and _origin(entry)[0] in (OURSELVES, "")


class Plugins:
    """All drivers and hooks of one host.

    :param objects: driver classes and hook plugins (modules, objects, or classes that are constructed with the host).
    :ivar refused: what was not loaded, and why.
    """

    def __init__(self, settings: Settings, objects: Iterable[object] = ()) -> None:
        self._settings = settings
        self.refused: list[RefusedPlugin] = []
        self._drivers: dict[str, FoundDriver] = {}
        self._hook_objects: list[object] = []
        self._looked_up = False
        self._imported: dict[str, type[DriverBase]] = {}
        self._disabled, self._only_builtin = _from_environment(settings)
        for each in objects:
            if isinstance(each, type) and issubclass(each, DriverBase):
                self._add_class(each)
            else:
                self._hook_objects.append(each)

    def refuse(self, name: str, group: str, reason: str, entry: AnyEntry | None = None) -> RefusedPlugin:
        """Remember and log that a plugin is not loaded."""
        distribution, version = _origin(entry) if entry is not None else ("", "")
        refused = RefusedPlugin(name=name, group=group, reason=reason, distribution=distribution, version=version)
        self.refused.append(refused)
        log.error("%s", refused, extra={"task_id": "", "driver": name if group == DRIVERS else ""})
        return refused

    def _add_class(self, cls: type[DriverBase]) -> None:
        reason = what_is_wrong(cls)
        name = str(getattr(cls, "name", cls.__name__))
        if reason is None and name in self._drivers:
            reason = f"the name {name!r} is taken by another driver"
        if reason is not None:
            self.refuse(name, DRIVERS, reason)
        else:
            self._drivers[name] = FoundDriver(name=name, cls=cls)

    def drivers(self) -> dict[str, FoundDriver]:
        """All drivers that can be asked for; looked up once, and imported by none of it."""
        if not self._looked_up:
            self._looked_up = True
            for entry in self._entries(DRIVERS):
                if entry.name in self._drivers:
                    self.refuse(entry.name, DRIVERS, f"the name {entry.name!r} is taken by another driver", entry)
                else:
                    self._drivers[entry.name] = FoundDriver(name=entry.name, entry=entry)
        return self._drivers

    def driver_class(self, name: str) -> type[DriverBase]:
        """Import a driver.

        :raises PluginError: there is none of this name, or it was refused; the message says which and why.
        """
        if name in self._imported:
            return self._imported[name]
        found = self._drivers.get(name) or self._own_driver(name) or self.drivers().get(name)
        if found is None:
            for refused in self.refused:
                if refused.group == DRIVERS and refused.name == name:
                    raise PluginError(str(refused))
            import difflib

            near = difflib.get_close_matches(name, self._drivers, 1)
            raise PluginError(
                f"there is no driver {name!r}: "
                + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(self._drivers))}")
            )
        if found.cls is not None:
            return found.cls
        assert found.entry is not None
        cls, reason = _import_driver(found.entry)
        if cls is None and reason.startswith("install "):
            raise MissingExtra(reason)
        if cls is None:
            self._drivers.pop(name, None)
            raise PluginError(str(self.refuse(name, DRIVERS, reason, found.entry)))
        self._imported[name] = cls
        return cls

    def _own_driver(self, name: str) -> FoundDriver | None:
        """A built-in driver, found without looking at any other distribution's entry points."""
        if self._looked_up or name in self._disabled:
            return None
        value = _own_entry_points(DRIVERS).get(name)
        return FoundDriver(name=name, entry=OwnEntry(name, value)) if value is not None else None

    def load_hooks(self, host: object) -> PluginManager:
        """Load the hook plugins; those that are classes are constructed as ``Plugin(host)``."""
        import pluggy

        from cameleer.hooks import specs

        manager = pluggy.PluginManager("cameleer")
        manager.add_hookspecs(specs)
        for each in self._hook_objects:
            self._register(manager, each, getattr(each, "__name__", type(each).__name__), host, None)
        wanted = self._settings.hooks
        if wanted is None or wanted:
            for entry in self._entries(HOOKS):
                if wanted is not None and entry.name not in wanted:
                    continue
                try:
                    plugin = entry.load()
                except Exception as exc:  # whatever a stranger's import raises concerns that plugin alone
                    self.refuse(entry.name, HOOKS, f"it cannot be imported: {exc!r}", entry)
                else:
                    self._register(manager, plugin, entry.name, host, entry)
        return manager

    def _register(
        self, manager: PluginManager, plugin: object, name: str, host: object, entry: AnyEntry | None
    ) -> None:
        if manager.has_plugin(name):
            self.refuse(name, HOOKS, f"the name {name!r} is taken by another plugin", entry)
            return
        try:
            if isinstance(plugin, type):
                plugin = plugin(host)
            manager.register(plugin, name)
        except Exception as exc:  # a constructor may raise anything, pluggy what it finds wrong with a signature
            if manager.has_plugin(name):
                manager.unregister(name=name)
            self.refuse(name, HOOKS, f"{type(exc).__name__}: {' '.join(str(exc).split())}", entry)
            return
        reason = _invalid_hooks(manager, plugin)
        if reason is not None:
            manager.unregister(plugin)
            self.refuse(name, HOOKS, reason, entry)

    def _entries(self, group: str) -> Iterator[EntryPoint]:
        """The entry points that may be imported, built-in ones first."""
        from importlib.metadata import entry_points

        for entry in sorted(entry_points(group=group), key=lambda each: not builtin(each)):
            if entry.name in self._disabled or (self._only_builtin and not builtin(entry)):
                log.debug("the plugin %s is disabled and was not imported", entry.name)
            else:
                yield entry


def _from_environment(settings: Settings) -> tuple[frozenset[str], bool]:
    """Names that must not be imported, and whether only built-in plugins may be."""
    text = os.environ.get("CAMELEER_NO_PLUGINS", "").strip()
    only_builtin = settings.disabled is None or text.lower() in ("1", "true", "yes", "all")
    names = frozenset() if only_builtin else frozenset(name.strip() for name in text.split(",") if name.strip())
    return names | (settings.disabled or frozenset()), only_builtin


def _import_driver(entry: AnyEntry) -> tuple[type[DriverBase] | None, str]:
    try:
        cls = entry.load()
    except ImportError as exc:
        if builtin(entry):
            return None, f"install cameleer[{entry.name}] ({exc})"
        return None, f"it cannot be imported: {exc!r}"
    except Exception as exc:  # whatever a stranger's import raises concerns that driver alone
        return None, f"it cannot be imported: {exc!r}"
    reason = what_is_wrong(cls)
    if reason is None and cls.name != entry.name:
        reason = f"it calls itself {cls.name!r} and is entered as {entry.name!r}"
    return (None, reason) if reason is not None else (cls, "")


def what_is_wrong(cls: Any) -> str | None:
    """Say why a class cannot serve as a driver; None if it can."""
    from cameleer.blocking import BlockingDriver, BlockingTask
    from cameleer.driver import RunningTask

    if not isinstance(cls, type) or not issubclass(cls, (Driver, BlockingDriver)):
        return f"it is {cls!r}, and must be a class derived from Driver or BlockingDriver"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        return f"its name is {name!r}, and must be letters, digits, '_' and '-'"
    abstract = getattr(cls, "__abstractmethods__", None)
    if abstract:
        return f"it does not implement {', '.join(sorted(abstract))}"
    task_base: type = BlockingTask if issubclass(cls, BlockingDriver) else RunningTask
    task_type = getattr(cls, "task_type", None)
    if not isinstance(task_type, type) or not issubclass(task_type, task_base):
        return f"its task_type is {task_type!r}, and must be a class derived from {task_base.__name__}"
    abstract = getattr(task_type, "__abstractmethods__", None)
    if abstract:
        return f"its task_type {task_type.__name__} does not implement {', '.join(sorted(abstract))}"
    return _wrong_colour(cls, Driver) or _wrong_colour(task_type, task_base)


def _wrong_colour(cls: type, base: type) -> str | None:
    """Find a method that is ``async`` where its base is plain, or the other way about."""
    from cameleer.blocking import BlockingDriver

    if issubclass(cls, BlockingDriver):
        base = BlockingDriver
    for name, method in vars(base).items():
        own = getattr(cls, name, None)
        if name.startswith("_") or not isinstance(method, FunctionType) or not isinstance(own, FunctionType):
            continue
        if own is method:
            continue
        if inspect.iscoroutinefunction(own) != inspect.iscoroutinefunction(method):
            want = "async def" if inspect.iscoroutinefunction(method) else "def"
            return f"{cls.__name__}.{name} must be written with {want}"
    return None


def _invalid_hooks(manager: PluginManager, plugin: object) -> str | None:
    for caller in manager.get_hookcallers(plugin) or ():
        mine = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
        if not caller.has_spec() and not all(impl.optionalhook for impl in mine):
            import difflib

            known = [name for name in vars(manager.hook) if getattr(manager.hook, name).has_spec()]
            near = difflib.get_close_matches(caller.name, known, 1)
            return f"there is no hook {caller.name!r}: " + (
                f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            )
        if any(impl.hookwrapper or impl.wrapper for impl in mine):
            return f"its {caller.name} is a wrapper: an observer must not stand around the others"
    return None


def load_file_or_module(spec: str) -> list[object]:
    """Load ``--plugin FILE|MODULE``: its driver classes, its classes with hooks, and the module if it has hooks itself.

    :param spec: a path that ends in ``.py`` or has a slash, else a module's dotted name.
    :raises PluginError: it cannot be loaded or has neither driver nor hook.
    """
    import importlib
    import importlib.util

    try:
        if spec.endswith(".py") or os.sep in spec:
            name = "cameleer_plugin_" + os.path.basename(spec).removesuffix(".py").replace("-", "_")
            found = importlib.util.spec_from_file_location(name, spec)
            if found is None or found.loader is None:
                raise PluginError(f"cannot load the plugin {spec}: it is no Python file")
            module = importlib.util.module_from_spec(found)
            sys.modules[name] = module  # as an import does: pickling and dataclasses look it up
            try:
                found.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        else:
            module = importlib.import_module(spec)
    except PluginError:
        raise
    except Exception as exc:  # whatever a stranger's code raises
        raise PluginError(f"cannot load the plugin {spec}: {exc!r}") from exc
    objects = list(_plugins_in(module))
    if not objects:
        raise PluginError(f"the plugin {spec} has neither a driver class nor a function marked with @hookimpl")
    return objects


def _plugins_in(module: ModuleType) -> Iterator[object]:
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    for value in own:
        if isinstance(value, type):
            if issubclass(value, DriverBase):
                if not inspect.isabstract(value):
                    yield value
            elif any(hasattr(member, "cameleer_impl") for member in vars(value).values()):
                yield value
    if any(isinstance(value, FunctionType) and hasattr(value, "cameleer_impl") for value in own):
        yield module
