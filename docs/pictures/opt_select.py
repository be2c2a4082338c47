"""The negatives that three selectors set against the best response of the same group."""

from _group import group
from _style import BAD, GOOD, PICK, REWARDS, axes, plain, save
from matplotlib.lines import Line2D

from pyfast import select

embeddings, rewards = group()
k = 5
chosen = {
    "bottom-k: the lowest scores": select.bottom_k(rewards, k, embeddings=embeddings),
    "coreset: the lowest of each cluster": select.coreset(embeddings, rewards, k),
    "Opt-Select: cover the bad ones": select.opt_select(embeddings, rewards, k, n_init=10),
}
figure, panels = axes(9.2, 3.5, 3)
for ax, (title, picked) in zip(panels, chosen.items(), strict=True):
    plain(ax, title)
    ax.scatter(*embeddings.T, c=rewards, cmap=REWARDS, s=26, vmin=0, vmax=1)
    ax.scatter(*embeddings[picked.negatives].T, s=130, facecolors="none", edgecolors=PICK, lw=1.8)
    ax.scatter(*embeddings[picked.positive], s=150, marker="*", c=GOOD)
marks = [
    Line2D([], [], ls="", marker="o", color=BAD, label="low reward"),
    Line2D([], [], ls="", marker="o", color=GOOD, label="high reward"),
    Line2D([], [], ls="", marker="*", ms=11, color=GOOD, label="chosen response"),
    Line2D([], [], ls="", marker="o", ms=11, mfc="none", mec=PICK, mew=1.8, label="its negatives"),
]
figure.legend(handles=marks, loc="outside lower center", ncols=4)
save(figure, __file__)
