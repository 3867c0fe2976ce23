"""Parser of database URLs such as ``DATABASE_URL=postgresql://user:password@host:5432/name``."""

from urllib.parse import unquote, urlsplit

ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgres": "django.db.backends.postgresql",
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}


def database_from_url(url: str) -> dict[str, object]:
    """Return an item of Django's ``DATABASES``. Raises ValueError for an unknown scheme.

    ``sqlite:///file`` is relative to the working directory, ``sqlite:////folder/file`` absolute.
    """
    parts = urlsplit(url)
    if parts.scheme not in ENGINES:
        message = f"DATABASE_URL starts with {parts.scheme!r}; known schemes are {', '.join(ENGINES)}"
        raise ValueError(message)
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "sqlite":
        return {"ENGINE": ENGINES["sqlite"], "NAME": name or ":memory:"}
    return {
        "ENGINE": ENGINES[parts.scheme],
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
    }
