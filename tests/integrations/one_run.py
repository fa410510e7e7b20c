"""`dag.test()` of the example DAG, in Airflow's own environment.

python one_run.py      prints the state of the run and what the task returned, as JSON, on its last line
"""

from __future__ import annotations

import json

from foreseen.airflow.example_dags import foreseen_warm


def main() -> None:
    dag = foreseen_warm.warm_dag
    run = dag.test()
    (task,) = run.get_task_instances()
    print(json.dumps({"state": str(run.state), "returned": task.xcom_pull(task_ids="warm")}))


if __name__ == "__main__":
    main()
