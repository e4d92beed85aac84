"""The description of the HTTP API, `/openapi.json`, and a page that shows it, `/docs`.

Modules:
    document: the description, made from the table of routes.
    handlers: the addresses.
    schemas: the shapes that several addresses use.
    shapes: what each address takes and answers.
"""
