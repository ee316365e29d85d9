"""The public names of Ray 2.60, as its package lists them: what docs/compatibility.md is held to.

Names that begin with an underscore are left out, as is what is inside Ray's libraries.
"""

from __future__ import annotations

_TEXT = """
[ray]
ActorClassID ActorID ClientBuilder DynamicObjectRefGenerator FunctionID JobID Language LoggingConfig
NodeID ObjectID ObjectRef ObjectRefGenerator PlacementGroupID SCRIPT_MODE TaskID UniqueID WORKER_MODE
WorkerID __version__ available_resources cancel client cluster_resources cpp_function get get_actor
get_gpu_ids get_runtime_context init is_initialized java_actor_class java_function kill method nodes put
remote shutdown timeline wait
[modules]
ray.actor ray.air ray.autoscaler ray.client_builder ray.cloudpickle ray.cluster_utils ray.cross_language
ray.dag ray.data ray.exceptions ray.experimental ray.experimental.internal_kv ray.internal
ray.job_submission ray.llm ray.remote_function ray.rllib ray.runtime_context ray.serve ray.train ray.tune
ray.types ray.util ray.util.accelerators ray.util.actor_pool ray.util.check_serialize ray.util.client
ray.util.collective ray.util.dask ray.util.debugpy ray.util.helpers ray.util.iter ray.util.joblib
ray.util.metrics ray.util.multiprocessing ray.util.placement_group ray.util.queue ray.util.rpdb
ray.util.scheduling_strategies ray.util.spark ray.util.state ray.util.tracing ray.widgets ray.workflow
[ray.init]
address num_cpus num_gpus resources labels object_store_memory local_mode ignore_reinit_error
include_dashboard dashboard_host dashboard_port job_config configure_logging logging_level logging_format
logging_config log_to_driver namespace runtime_env enable_resource_isolation
[RemoteFunction]
bind options remote
[ActorClass]
bind options remote
[ActorMethod]
bind options remote
[ObjectRef]
__await__ as_future binary call_site from_binary from_hex from_random future hex is_nil job_id nil
owner_address redis_shard_hash size task_id tensor_transport
[RuntimeContext]
actor_id current_actor current_placement_group_id gcs_address get get_accelerator_ids get_actor_id
get_actor_name get_assigned_resources get_job_id get_node_id get_node_labels get_placement_group_id
get_resource_ids get_runtime_env_string get_session_name get_task_function_name get_task_id get_task_name
get_temp_dir get_worker_id is_canceled job_id namespace node_id runtime_env
should_capture_child_tasks_in_placement_group task_id was_current_actor_reconstructed
[ray.util]
ActorPool as_completed connect deregister_serializer disable_log_once_globally disconnect
enable_periodic_logging get_current_placement_group get_node_instance_id get_node_ip_address
get_placement_group inspect_serializability list_named_actors log_once map_unordered pdb
placement_group_table ray_debugpy register_serializer remove_placement_group
[ray.util.ActorPool]
get_next get_next_unordered has_free has_next map map_unordered pop_idle push submit
[ray.util.queue.Queue]
empty full get get_async get_nowait get_nowait_batch put put_async put_nowait put_nowait_batch qsize
shutdown size
[ray.util.multiprocessing.Pool]
apply apply_async close imap imap_unordered join map map_async starmap starmap_async terminate
[ray.util.joblib]
register_ray
[ray.util.scheduling_strategies]
DoesNotExist Exists In NodeAffinitySchedulingStrategy NodeLabelSchedulingStrategy NotIn
PlacementGroupSchedulingStrategy
[ray.util.placement_group]
PlacementGroup placement_group remove_placement_group placement_group_table get_placement_group
get_current_placement_group
[ray.util.state]
get_actor get_job get_log get_node get_objects get_placement_group get_task get_worker list_actors
list_cluster_events list_jobs list_logs list_nodes list_objects list_placement_groups list_runtime_envs
list_tasks list_workers summarize_actors summarize_objects summarize_tasks
[ray.experimental.internal_kv]
_internal_kv_reset _internal_kv_initialized _internal_kv_get _internal_kv_exists _internal_kv_put
_internal_kv_del _internal_kv_list
[options of tasks]
accelerator_type enable_task_events fallback_strategy label_selector max_calls max_retries memory name
num_cpus num_gpus num_returns object_store_memory placement_group placement_group_bundle_index
placement_group_capture_child_tasks resources retry_exceptions runtime_env scheduling_strategy
[options of actors]
accelerator_type allow_out_of_order_execution concurrency_groups enable_task_events
enable_tensor_transport fallback_strategy get_if_exists label_selector lifetime max_concurrency
max_pending_calls max_restarts max_task_retries memory name namespace num_cpus num_gpus
object_store_memory placement_group placement_group_bundle_index placement_group_capture_child_tasks
resources runtime_env scheduling_strategy
[options of methods]
num_returns concurrency_group max_task_retries retry_exceptions enable_task_events tensor_transport
[ray.exceptions]
RayError CrossLanguageError TaskCancelledError RayTaskError LocalRayletDiedError WorkerCrashedError
RayActorError ActorDiedError ActorUnavailableError RaySystemError AuthenticationError UserCodeException
ObjectStoreFullError OutOfDiskError OutOfMemoryError NodeDiedError ObjectLostError
ObjectFetchTimedOutError RpcError ReferenceCountingAssertionError ObjectFreedError OwnerDiedError
ObjectReconstructionFailedError GetTimeoutError PlasmaObjectNotAvailable AsyncioActorExit
RuntimeEnvSetupError TaskPlacementGroupRemoved ActorPlacementGroupRemoved PendingCallsLimitExceeded
TaskUnschedulableError ActorUnschedulableError ObjectRefStreamEndOfStreamError
StreamingGeneratorReplayInconsistentError OufOfBandObjectRefSerializationException RayChannelError
RayChannelTimeoutError RayCgraphCapacityExceeded RayDirectTransportError UnserializableException
ActorAlreadyExistsError ActorHandleNotFoundError
"""


def ray_names() -> dict[str, list[str]]:
    """Return the names by group: a module, a class, or a kind of options."""
    groups: dict[str, list[str]] = {}
    names: list[str] = []
    for line in _TEXT.split("\n"):
        if line.startswith("["):
            names = groups[line.strip("[]")] = []
        else:
            names += line.split()
    return groups
