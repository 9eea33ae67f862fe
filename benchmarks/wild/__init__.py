"""Models as other people write them: whole jobs, Pyro programs and networks, each with its group written by hand.

python -m benchmarks.wild --jobs          # fit, find, align, walk, report on Pyro's own examples
python -m benchmarks.wild --programs      # discovery on Pyro programs
python -m benchmarks.wild --networks      # discovery on networks
"""
