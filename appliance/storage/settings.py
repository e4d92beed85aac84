"""Settings of the database and of Redis. This module is always imported, and imports nothing of them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from appliance.base.setting_types import DurationS, Switch, duration
from appliance.base.settings import PackageSettings

SPELLINGS = {"postgresql": "postgres", "pg": "postgres", "sqlite3": "sqlite"}
POSTGRES_NAME, SQLITE_NAME = "gpuproxy", "gpuproxy.db"


def _kind(value: object) -> object:
    word = value.strip().lower() if isinstance(value, str) else value
    return SPELLINGS.get(word, word) if isinstance(word, str) else word


def _port(value: object) -> object:
    """Take the port of an address: beside a Service `redis` Kubernetes sets REDIS_PORT to one."""
    return value.rpartition(":")[2] if isinstance(value, str) and value.startswith("tcp://") else value


class StorageSettings(PackageSettings):
    """The database of accounts, and Redis."""

    db_type: Annotated[Literal["", "postgres", "sqlite"], BeforeValidator(_kind)] = Field(
        "",
        description="The database of accounts and money: sqlite = a file, for one process; postgres = a "
        "server, for any number of replicas; empty = postgres where DB_HOST is set, else sqlite",
        json_schema_extra={"allowed": "postgres, sqlite, or empty"},
    )
    db_host: str = Field(
        "",
        description="PostgreSQL: its host, or the folder of its socket",
        json_schema_extra={"allowed": "a host name, an address, or an absolute path"},
    )
    db_port: Annotated[int, BeforeValidator(_port)] = Field(
        5432, ge=1, le=65_535, description="PostgreSQL: its port"
    )
    db_user: str = Field("postgres", min_length=1, description="PostgreSQL: the user")
    db_password: SecretStr = Field(
        SecretStr(""), description="PostgreSQL: the user's password", json_schema_extra={"allowed": "text"}
    )
    db_name: str = Field(
        "",
        description=f"PostgreSQL: the database, `{POSTGRES_NAME}` where this is empty; SQLite: the file, in "
        f"STATE_DIR unless it is a whole path, `{SQLITE_NAME}` where this is empty",
        json_schema_extra={"allowed": "a name, or the path of a file"},
    )
    db_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        "prefer",
        description="PostgreSQL: whether TLS is used, and what is checked, as its own clients do",
    )
    db_sslrootcert: Path | None = Field(
        None,
        description="PostgreSQL: the file of the authority whose certificates verify-ca and verify-full "
        "trust; empty = those that this machine trusts",
        json_schema_extra={"allowed": "a readable file"},
    )
    db_max_conns: int = Field(
        10,
        ge=1,
        le=1000,
        description="PostgreSQL: most connections of one replica at a time; one more listens for changes",
    )
    db_min_conns: int = Field(
        1, ge=0, le=1000, description="PostgreSQL: so many connections are kept, however idle they are"
    )
    db_max_conn_lifetime: DurationS = Field(
        3600.0,
        gt=0,
        le=604_800,
        description="PostgreSQL: a connection older than this is closed after its use",
        json_schema_extra=duration("1h"),
    )
    db_max_conn_idle_time: DurationS = Field(
        1800.0,
        gt=0,
        le=604_800,
        description="PostgreSQL: a connection that is idle for longer is closed, if more than DB_MIN_CONNS "
        "are open",
        json_schema_extra=duration("30m"),
    )
    db_health_check_period: DurationS = Field(
        60.0,
        gt=0,
        le=3600,
        description="PostgreSQL: how often idle connections are looked after, and how long one may be unused "
        "before it is tried first",
        json_schema_extra=duration("1m"),
    )
    db_connect_timeout: DurationS = Field(
        5.0,
        gt=0,
        le=120,
        description="Longest wait for a connection, and for one that is free",
        json_schema_extra=duration("5s"),
    )
    db_statement_timeout: DurationS = Field(
        10.0,
        gt=0,
        le=600,
        description="Longest time of one statement, locks that it waits for included",
        json_schema_extra=duration("10s"),
    )
    db_use_pgbouncer: Switch = Field(
        False,
        description="1 = PgBouncer is before PostgreSQL: no named prepared statements, no settings "
        "of sessions; and with DB_PGBOUNCER_POOL_MODE=transaction no LISTEN, so that changes by other "
        "replicas are seen within 2 s",
    )
    db_pgbouncer_pool_mode: Literal["transaction", "session", "statement"] = Field(
        "transaction",
        description="PgBouncer's pool_mode; statement is refused: money needs transactions",
    )
    redis_host: str = Field(
        "",
        description="The Redis of sessions and limits; empty = none is used for them. KV events index the "
        "blocks of an engine there, or in `redis-server` where this is empty (docs/kv-events.md)",
        json_schema_extra={"allowed": "a host name or an address"},
    )
    redis_port: Annotated[int, BeforeValidator(_port)] = Field(
        6379,
        ge=1,
        le=65_535,
        description="Its port; of an address such as Kubernetes sets (`tcp://10.0.0.7:6379`) only the port "
        "is used",
    )
    redis_db: int = Field(0, ge=0, le=65_535, description="Number of its database")
    redis_password: SecretStr = Field(
        SecretStr(""), description="Its password", json_schema_extra={"allowed": "text"}
    )
    redis_tls: Switch = Field(False, description="1 = by TLS, with a certificate that this machine trusts")
    redis_pool_size: int = Field(10, ge=1, le=1000, description="Most connections to it at a time")
    redis_dial_timeout: DurationS = Field(
        3.0, gt=0, le=60, description="Longest time to connect to it", json_schema_extra=duration("3s")
    )
    redis_read_timeout: DurationS = Field(
        3.0, gt=0, le=60, description="Longest wait for its reply", json_schema_extra=duration("3s")
    )
    redis_write_timeout: DurationS = Field(
        3.0,
        gt=0,
        le=60,
        description="Longest time to send it a command; the longer one of this and REDIS_READ_TIMEOUT counts "
        "for both",
        json_schema_extra=duration("3s"),
    )

    @property
    def db_kind(self) -> Literal["sqlite", "postgres"]:
        """Which database it is."""
        return self.db_type or ("postgres" if self.db_host else "sqlite")

    def sqlite_path(self, state_dir: Path) -> Path:
        """Return SQLite's file.

        Args:
            state_dir: STATE_DIR.
        """
        return state_dir / (self.db_name or SQLITE_NAME)

    @field_validator("db_name")
    @classmethod
    def _name(cls, value: str) -> str:
        if "\0" in value or ".." in value.split("/"):
            raise ValueError("a name has no '..' and no NUL in it")
        return value

    @model_validator(mode="after")
    def _together(self) -> "StorageSettings":
        if self.db_type == "postgres" and not self.db_host:
            raise ValueError("DB_HOST: DB_TYPE=postgres needs the host of the server; set DB_HOST")
        if self.db_min_conns > self.db_max_conns:
            raise ValueError(
                f"DB_MIN_CONNS: {self.db_min_conns} is more than DB_MAX_CONNS, {self.db_max_conns}; lower it"
            )
        if self.db_use_pgbouncer and self.db_pgbouncer_pool_mode == "statement":
            raise ValueError(
                "DB_PGBOUNCER_POOL_MODE: with `statement` there are no transactions, which money needs; set "
                "pool_mode = transaction in PgBouncer, and here"
            )
        return self
