"""Medoids and a D-optimal choice as scikit-learn estimators, in a pipeline and a grid search.

pip install ".[sklearn]"
python examples/scikit_learn.py
"""

from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyfast.integrations.sklearn import DOptimalSelector, KMedoids


def main():
    """Print what three flowers stand for all, how good their clusters are, and more."""
    X, species = load_iris(return_X_y=True)
    medoids = KMedoids(n_clusters=3).fit(X)
    print("medoids", *medoids.medoid_indices_.tolist())
    print(f"agreement {adjusted_rand_score(species, medoids.labels_):.3f}")
    print("to be measured first", *DOptimalSelector(n_samples=5).fit(X).ranking_.tolist())

    distances = make_pipeline(StandardScaler(), KMedoids(), KNeighborsClassifier())
    search = GridSearchCV(distances, {"kmedoids__n_clusters": [2, 4, 8]}, cv=5).fit(X, species)
    print(f"accuracy {search.best_score_:.3f} by distances to", search.best_params_)


if __name__ == "__main__":
    main()
