"""What panels and the demo's page show and do, without Jupyter: HTML, and a text that is sampled
step by step.
"""
