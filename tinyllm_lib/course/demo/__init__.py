"""A web page for the classroom: `python -m tinyllm_lib.course.demo`."""
