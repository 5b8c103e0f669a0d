"""Templates: guests that were booted once, from which later machines start.

A template is a snapshot (:mod:`pykvm.snapshot`) of a booted guest without disks, in the user's
cache folder. Its name is a hash of all that decides how the guest boots, so a changed guest, host
or pykvm has a new template.

==========  ==========================================================
module      contents
==========  ==========================================================
``start``   a machine that starts from its template; the whole of it
``key``     the name of a configuration's template on this host
``store``   the folder of templates, as a start sees it
``build``   boots a guest once, alone, and keeps its template
``upkeep``  makes, removes and lists templates beside other processes
``about``   a template's description for people
==========  ==========================================================
"""
