"""Sentences without labels: an embedding from raw text, what it finds near, and what it is worth beside TF-IDF.

    python examples/sentences.py
"""

import nearfar

run = nearfar.train("pydoc", epochs=30, out="runs/example-sentences", force=True)  # CPython's own help topics

for query in ("How does a class inherit from another one?", "What happens when an exception is not handled?"):
    print(f"\n{query}")
    part = run.open("pydoc").train
    for index, cosine in run.neighbours("pydoc", query, k=3):
        print(f"  {cosine:.2f}  {part.names[index]}")

result = run.evaluate()
for name in ("nearfar", "untrained encoder", "averaged word vectors", "TF-IDF"):
    print(f"{name:22} topic of 77 told by the nearest sentences: {result[name]['kNN'].value:.3f}")
