"""Attacks on a real server and on real commands, by kind; each fails where its defence is taken away.

To add one, write a function in the module of its kind::

    @attack(without={"pdserve.services.http.messages:check_rank": lambda *_: None})
    def a_tensor_of_many_dimensions(target: Target) -> None:
        \"\"\"Its shape is refused before it is multiplied.\"\"\"
        body = ...                                  # built before anything is measured
        with target.watch() as seen:
            answer = target.http.post("/v1/classification", content=body)
        assert answer.status_code == 400
        assert seen.grown_mb < 100
        assert seen.health_s < 5
        target.good()

``without`` names the attributes that are the defence and what takes their place where it is to be missing:
an object, None, a large number. ``python -m tests.attacks.undefended NAME`` runs the attack so, and must
print red. A setting that is the defence (``--max-pixels``) is taken away by ``undefended_options``.
``options`` and ``service`` say which server it needs (see `tests.kinds.OPTIONS`); attacks that want the same
share one, so an attack must leave the server as it was, or ask for one of its own with `Target.start`.
``service=None`` is for commands alone. What takes longer than two seconds is ``full=True``.
"""
