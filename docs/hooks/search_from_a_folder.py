"""A page that is opened from a folder may start no worker, so its search needs a shim; no other page fetches it."""

SHIM = "https://unpkg.com/iframe-worker/shim"
ALWAYS = f'<script src="{SHIM}"></script>'
FROM_A_FOLDER = (
    f"""<script>location.protocol === "file:" && document.write('<script src="{SHIM}"><\\/script>')</script>"""
)


def on_post_page(output, page, config):
    """Fetch the shim where it is needed, and nothing elsewhere."""
    return output.replace(ALWAYS, FROM_A_FOLDER)
