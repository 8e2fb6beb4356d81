/*
 * mamba4j: Mamba-1 and Mamba-2 (selective state space) language models.
 *
 * This header is the whole C ABI: plain C11, fixed-width types, no structs by value.
 *
 * Conventions, valid for every function unless its comment says otherwise
 *  - Status. Fallible functions return an m4j_status: M4J_OK (0) or one of the M4J_ERR_ codes. With an error they
 *    fill *err (may be NULL) with a sentence that names the argument, its value and what was expected. Nothing is
 *    stored per thread. After any error but M4J_ERR_INTERNAL, handles, states and outputs are as before the call.
 *  - Args structs begin with struct_size, which the caller sets to sizeof of the struct it was compiled with.
 *  - Sizes, counts, strides and offsets are int64_t; strides count elements, not bytes.
 *  - Handles (m4j_engine, m4j_buffer, m4j_model, m4j_states, m4j_queue) are opaque and counted: a model, a buffer and a
 *    queue keep their engine alive, a pool of states its model, so that they may be released in any order. Release each
 *    exactly once; NULL is ignored.
 *  - Threads. Any handle may be used by any number of threads at once. Calls that compute on one engine take turns
 *    on its threads. One slot may only be used by one call at a time (M4J_ERR_BUSY otherwise).
 *  - Nothing here prints, exits, aborts or throws.
 *
 * Shapes: B batch, L length, E d_inner, N d_state, R dt_rank, H heads, P headdim, G n_groups, K d_conv, V vocab_size,
 * D d_model, C channels of the convolution (E in Mamba-1, E + 2*G*N in Mamba-2).
 *
 * Papers: Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023);
 *         Dao & Gu, "Transformers are SSMs" (2024), whose section 6 is the chunked SSD algorithm.
 */
#ifndef MAMBA4J_H
#define MAMBA4J_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define M4J_API __declspec(dllexport)
#else
#define M4J_API __attribute__((visibility("default")))
#endif

#define M4J_ABI_VERSION 1
#define M4J_MAX_RANK 4
#define M4J_ERROR_MESSAGE_SIZE 504

/* ---- Status ------------------------------------------------------------------------------------------------- */

typedef int32_t m4j_status;

enum {
  M4J_OK = 0,
  M4J_ERR_INVALID_ARGUMENT = 1, /* a value, shape, dtype or size is wrong; nothing changed */
  M4J_ERR_STALE_SLOT = 2,       /* the slot was released, or never came from this pool; nothing changed */
  M4J_ERR_BUSY = 3,             /* another call is using this slot; nothing changed */
  M4J_ERR_EXHAUSTED = 4,        /* the pool holds as many slots as it may; nothing changed */
  M4J_ERR_OUT_OF_MEMORY = 5,    /* memory was refused; nothing changed */
  M4J_ERR_UNSUPPORTED = 6,      /* valid, but not offered by this build, device or dtype; nothing changed */
  M4J_ERR_MISMATCH = 7,         /* an exported state belongs to another model or is damaged; nothing changed */
  M4J_ERR_INTERNAL = 8          /* a defect of the library; reset the slots that took part before using them again */
};

typedef struct m4j_error {
  int32_t code;     /* the m4j_status */
  int32_t reserved; /* 0 */
  char message[M4J_ERROR_MESSAGE_SIZE]; /* UTF-8, always NUL-terminated */
} m4j_error;

/* ---- Library ------------------------------------------------------------------------------------------------ */

/* M4J_ABI_VERSION of the library itself. Never fails. */
M4J_API int32_t m4j_abi_version(void);

/* Layout of this ABI as the compiler saw it, a line an entry, so that bindings can be checked against the library:
 *   struct NAME SIZE / field STRUCT.NAME OFFSET SIZE / function NAME RETURN(ARG,...) / constant NAME VALUE
 * with types i32, i64, u64, f32, ptr and void. Static storage. */
M4J_API const char* m4j_abi_layout(void);

/* Version of the library, such as "0.1.0". Static storage. */
M4J_API const char* m4j_version(void);

/* Bytes that the library holds on the heap at this moment, over all handles. Weights that a model only borrows do
 * not count. After everything is released it is back at its first value. */
M4J_API int64_t m4j_native_bytes(void);

/* Instruction sets that this build holds and this processor can run, best first, such as "amx avx3_bf16 avx3_vnni avx3
 * avx2_vnni avx2 sse4 reference" or, on ARM, "sve_256_dotprod sve_256 neon_dotprod neon reference". "amx" is offered
 * where Linux grants the process the matrix registers; asking for them, once, is the only thing that this does to the
 * process. SVE is offered where its vectors have 256 bits in the thread that first asks. Static storage. */
M4J_API const char* m4j_simd_targets(void);

/* ---- Tensors ------------------------------------------------------------------------------------------------- */

/* Q8_0 and Q4_0 are the quantised types of GGUF: rows are blocks of 32 weights with a float16 scale d in front,
 *   Q8_0 (34 bytes): 32 int8 q, weight = d * q
 *   Q4_0 (18 bytes): byte i holds q of weight i in its low and of weight i + 16 in its high four bits,
 *                    weight = d * (q - 8)
 * Shapes and strides count weights; a quantised tensor is contiguous, its last dimension a multiple of 32, its address
 * free. Only matrices may be quantised: embedding, lm_head, in_proj, x_proj, dt_proj, out_proj, weight of linear. */
enum { M4J_F32 = 0, M4J_F16 = 1, M4J_BF16 = 2, M4J_Q8_0 = 3, M4J_Q4_0 = 4 };

/* A strided view on caller-owned memory. data == NULL means absent where a field is optional.
 * data is aligned to its element. Strides are in elements and may be 0 (broadcast) for inputs. */
typedef struct m4j_tensor {
  void* data;
  int32_t dtype; /* M4J_F32 ... M4J_Q4_0 */
  int32_t rank;  /* 1 ... M4J_MAX_RANK */
  int64_t shape[M4J_MAX_RANK];
  int64_t strides[M4J_MAX_RANK];
} m4j_tensor;

/* ---- Engine: a device and its threads ------------------------------------------------------------------------ */

typedef struct m4j_engine m4j_engine;

enum { M4J_LOG_DEBUG = 0, M4J_LOG_INFO = 1, M4J_LOG_WARNING = 2, M4J_LOG_ERROR = 3 };

/* Called on the thread that made the call into the library, only while that call runs, or on the thread of a queue.
 * message is valid during the callback. The callback must not call back into the library. */
typedef void (*m4j_log_fn)(void* user, int32_t level, const char* message);

enum { M4J_DEVICE_CPU = 0, M4J_DEVICE_CUDA = 1 };

typedef struct m4j_engine_options {
  uint64_t struct_size;
  int32_t device;          /* M4J_DEVICE_CPU, M4J_DEVICE_CUDA */
  int32_t device_index;    /* CUDA: which GPU, as CUDA counts them: the fastest first, or as nvidia-smi does with
                              CUDA_DEVICE_ORDER=PCI_BUS_ID in the environment; CPU: 0 */
  int32_t threads;         /* 0: as many as the container's CPU quota and affinity allow; else 1 ... 1024. With CUDA they
                              only prepare weights. */
  int32_t reserved;        /* 0 */
  const char* simd_target; /* NULL: the best; else one of m4j_simd_targets() */
  const char* cuda_library; /* CUDA: file of libmamba4j_cuda, of which a process opens one; NULL: beside this library */
  m4j_log_fn log;          /* NULL: silent. Must stay callable until the engine's last handle is released. */
  void* log_user;
} m4j_engine_options;

/* Starts an engine; options may be NULL. Its threads sleep while no call runs. M4J_DEVICE_CUDA opens the NVIDIA
 * driver, libmamba4j_cuda and cuBLASLt; what is missing is M4J_ERR_UNSUPPORTED with the reason. */
M4J_API m4j_status m4j_engine_create(const m4j_engine_options* options, m4j_engine** out, m4j_error* err);
/* Joins the threads once nothing else holds the engine. */
M4J_API void m4j_engine_release(m4j_engine* engine);
M4J_API int32_t m4j_engine_threads(const m4j_engine* engine);
/* Name of the instruction set in use. Static storage. */
M4J_API const char* m4j_engine_simd_target(const m4j_engine* engine);
/* "CPU", or the GPU's product name such as "NVIDIA H200". Valid as long as the engine. */
M4J_API const char* m4j_engine_device_name(const m4j_engine* engine);
/* GPU memory held by the engine, its buffers, models and states at this moment; 0 on the CPU. */
M4J_API int64_t m4j_engine_device_bytes(const m4j_engine* engine);

/* ---- Memory of an engine's device ------------------------------------------------------------------------------ */

typedef struct m4j_buffer m4j_buffer;

/* Takes `bytes` of memory that the engine computes on: host memory on the CPU, on a GPU memory that only the GPU
 * reads. Zeroed, at a multiple of 64 bytes. If it is refused, M4J_ERR_OUT_OF_MEMORY names what was asked for and what
 * a GPU has free; all that exists stays usable. */
M4J_API m4j_status m4j_buffer_create(m4j_engine* engine, int64_t bytes, m4j_buffer** out, m4j_error* err);
/* No call may be using the memory. */
M4J_API void m4j_buffer_release(m4j_buffer* buffer);
/* Its first byte; NULL if it has none. */
M4J_API void* m4j_buffer_data(const m4j_buffer* buffer);

enum { M4J_TO_DEVICE = 0, M4J_TO_HOST = 1, M4J_ON_DEVICE = 2 };

/* Copies bytes from host memory to memory of the engine's device, back, or on the device; returns once they are there.
 * The two ranges must not overlap. A pointer that is not on the side that `direction` says is refused on a GPU; on the
 * CPU both are host memory. */
M4J_API m4j_status m4j_copy_bytes(m4j_engine* engine, void* to, const void* from, int64_t bytes, int32_t direction,
                                  m4j_error* err);

/* ---- Model: immutable weights ---------------------------------------------------------------------------------- */

typedef struct m4j_model m4j_model;

enum { M4J_MAMBA1 = 1, M4J_FALCON_MAMBA = 2, M4J_MAMBA2 = 3 };

/* Dimensions, how states are kept and whether activations may be rounded. Every weight is checked against them. Fields
 * that a family lacks are 0. */
typedef struct m4j_model_config {
  uint64_t struct_size;
  int32_t family;     /* M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2 */
  int32_t state_type; /* of the SSM states in their pool: M4J_F32, or on a GPU M4J_BF16, see m4j_advance */
  int32_t activation_type; /* on the CPU: M4J_F32, or M4J_BF16, see m4j_advance */
  int32_t reserved;        /* 0 */
  int64_t n_layer;
  int64_t vocab_size; /* rows of the embedding, padding included */
  int64_t d_model;
  int64_t d_inner;
  int64_t d_state;
  int64_t d_conv;
  int64_t dt_rank;    /* Mamba-1, Falcon-Mamba */
  int64_t n_heads;    /* Mamba-2: d_inner == n_heads * headdim */
  int64_t headdim;    /* Mamba-2 */
  int64_t n_groups;   /* Mamba-2: divides n_heads */
  int64_t chunk_size; /* Mamba-2: tokens per SSD chunk in prefill, 1 ... 4096 */
  float norm_eps;        /* of the block norms, norm_f and the gated norm */
  float mixer_norm_eps;  /* Falcon-Mamba: of the weightless norms on dt, B and C */
  float dt_min;          /* Mamba-2 time_step_limit: softplus(dt + dt_bias) is clamped to dt_min ... dt_max */
  float dt_max;          /* may be +Infinity */
} m4j_model_config;

/* Weights of one layer, all contiguous (row-major), F32, F16 or BF16 each, the matrices also Q8_0 or Q4_0. Optional
 * ones may be absent (data NULL). */
typedef struct m4j_layer_weights {
  m4j_tensor norm;          /* [D] */
  m4j_tensor in_proj;       /* Mamba-1 [2E, D] rows x,z; Mamba-2 [2E + 2GN + H, D] rows z,x,B,C,dt */
  m4j_tensor in_proj_bias;  /* optional, [rows of in_proj] */
  m4j_tensor conv_weight;   /* [C, K] */
  m4j_tensor conv_bias;     /* optional, [C] */
  m4j_tensor x_proj;        /* Mamba-1 [R + 2N, E] rows dt,B,C */
  m4j_tensor dt_proj;       /* Mamba-1 [E, R] */
  m4j_tensor dt_bias;       /* Mamba-1 [E] (dt_proj.bias), Mamba-2 [H] */
  m4j_tensor a_log;         /* Mamba-1 [E, N], Mamba-2 [H]; A = -exp(a_log) is taken in float32 */
  m4j_tensor d;             /* Mamba-1 [E], Mamba-2 [H] */
  m4j_tensor mixer_norm;    /* Mamba-2 [E]: gated RMSNorm, per group */
  m4j_tensor out_proj;      /* [D, E] */
  m4j_tensor out_proj_bias; /* optional, [D] */
} m4j_layer_weights;

typedef struct m4j_model_weights {
  uint64_t struct_size;
  m4j_tensor embedding;            /* [V, D] */
  m4j_tensor norm_f;               /* [D] */
  m4j_tensor lm_head;              /* optional, [V, D]; absent: tied to the embedding */
  const m4j_layer_weights* layers; /* [n_layer] */
} m4j_model_weights;

/* Makes a model. The matrices (embedding, lm_head, in_proj, x_proj, dt_proj, out_proj) are borrowed: their memory must
 * stay valid and unchanged until the model and every pool of states made from it are released, and calls in queues that
 * use them have completed; on a GPU, which gets a copy, until this call returns. The small tensors are copied. The
 * descriptors themselves may go after the call. */
M4J_API m4j_status m4j_model_create(m4j_engine* engine, const m4j_model_config* config,
                                    const m4j_model_weights* weights, m4j_model** out, m4j_error* err);
M4J_API void m4j_model_release(m4j_model* model);
/* Bytes of conv window and SSM state that a sequence takes in a pool. */
M4J_API int64_t m4j_model_state_bytes(const m4j_model* model);
/* Floats in the conv windows of a sequence: n_layer * C * (K - 1). */
M4J_API int64_t m4j_model_conv_state_size(const m4j_model* model);
/* Floats in the SSM states of a sequence: n_layer * E * N. */
M4J_API int64_t m4j_model_ssm_state_size(const m4j_model* model);
/* Identifies dimensions and weights (all small tensors, samples of the matrices), so that a state is not fed to
 * another model by mistake. Not a cryptographic hash. */
M4J_API uint64_t m4j_model_fingerprint(const m4j_model* model);

/* ---- States: one slot a sequence ------------------------------------------------------------------------------- */

typedef struct m4j_states m4j_states;

/* Names a slot and its generation: after m4j_slot_release the value is stale for good. 0 is never valid. */
typedef uint64_t m4j_slot;

/* Makes a pool of states that may hold up to max_slots slots (0: as many as memory allows). Slots take memory only
 * while they are taken; on a GPU the pool keeps it for slots to come until it is released. */
M4J_API m4j_status m4j_states_create(m4j_model* model, int64_t max_slots, m4j_states** out, m4j_error* err);
M4J_API void m4j_states_release(m4j_states* states);

/* Takes a slot with a zeroed state at position 0. */
M4J_API m4j_status m4j_slot_take(m4j_states* states, m4j_slot* out, m4j_error* err);
M4J_API m4j_status m4j_slot_release(m4j_states* states, m4j_slot slot, m4j_error* err);
/* Zeroes the state; position 0. */
M4J_API m4j_status m4j_slot_reset(m4j_states* states, m4j_slot slot, m4j_error* err);
/* Copies state and position of source to target, both slots of this pool. */
M4J_API m4j_status m4j_slot_copy(m4j_states* states, m4j_slot target, m4j_slot source, m4j_error* err);
/* Tokens fed since the slot was taken or reset. */
M4J_API m4j_status m4j_slot_position(m4j_states* states, m4j_slot slot, int64_t* out, m4j_error* err);

/* Bytes that m4j_slot_export writes for any slot of this model. */
M4J_API int64_t m4j_slot_export_size(const m4j_model* model);
/* Writes the state as bytes: a header (magic, format version, model fingerprint, position, sizes, checksum) and the
 * state in little-endian float32, whatever type the pool keeps it in. capacity must be at least
 * m4j_slot_export_size. */
M4J_API m4j_status m4j_slot_export(m4j_states* states, m4j_slot slot, void* buffer, int64_t capacity, m4j_error* err);
/* Reads what m4j_slot_export wrote. A wrong model, version, size or checksum is M4J_ERR_MISMATCH. */
M4J_API m4j_status m4j_slot_import(m4j_states* states, m4j_slot slot, const void* buffer, int64_t size,
                                   m4j_error* err);
/* Copies the conv windows [n_layer, C, K-1] (oldest input first) and the SSM states ([n_layer, E, N] in Mamba-1,
 * [n_layer, H, P, N] in Mamba-2) as floats. Either pointer may be NULL; capacities in floats. */
M4J_API m4j_status m4j_slot_read(m4j_states* states, m4j_slot slot, float* conv, int64_t conv_capacity, float* ssm,
                                 int64_t ssm_capacity, m4j_error* err);

/* ---- Sampling -------------------------------------------------------------------------------------------------- */

/* How one token is chosen from logits [V]. In this order:
 *   score   = logit; of recent ids, score / repetition_penalty where positive, score * repetition_penalty elsewhere
 *   weight  = 2^40 * exp((score - largest score) / temperature), cut to an integer; ids of weight 0 drop out
 *   top_k   the k largest scores stay, lower ids first among equals
 *   top_p   of those, in the same order, the fewest whose weights sum to at least top_p of all of theirs
 *   min_p   of those, the ones with at least min_p of the largest weight
 *   draw    the first id, in ascending order, at which the running sum of weights exceeds random * sum / 2^64, random
 *           being the first 64 bits of Philox 4x32-10 with key seed and counter draw
 * Integers sum to the same in any order, so equal logits give the same token on the CPU and on a GPU, alone and in any
 * batch. Subnormal logits count as zero.
 *
 * Nothing of this is kept in a slot: the caller counts the draws and holds the window of recent ids, so that an
 * exported state stays what it was, and one sequence may be continued in several ways. */
typedef struct m4j_sampling {
  uint64_t struct_size;
  int64_t candidates;       /* only ids below it may be chosen, which leaves out the padding of a vocabulary; 0: all */
  uint64_t seed;
  uint64_t draw;            /* number of this draw: count up from one token of a sequence to the next */
  int64_t top_k;            /* >= 1; 0: all */
  float temperature;        /* >= 0; 0: greedy, the lowest id among the largest scores, top_k ... draw unused */
  float top_p;              /* 0 < top_p <= 1; 1: all */
  float min_p;              /* 0 ... 1; 0: all */
  float repetition_penalty; /* > 0; 1: none */
  const int32_t* recent;    /* [n_recent], in any order, repeated or not; ids that are no candidates do nothing */
  int64_t n_recent;         /* >= 0 */
} m4j_sampling;

/* ---- The forward pass ------------------------------------------------------------------------------------------ */

enum { M4J_LOGITS_NONE = 0, M4J_LOGITS_LAST = 1, M4J_LOGITS_ALL = 2 };

/* A ragged batch: sequence i is tokens[offsets[i]] ... tokens[offsets[i + 1] - 1], at least one token. */
typedef struct m4j_advance_args {
  uint64_t struct_size;
  int64_t n_seqs;          /* >= 1 */
  const m4j_slot* slots;   /* [n_seqs], distinct */
  const int32_t* tokens;   /* [offsets[n_seqs]], each 0 ... V-1 */
  const int64_t* offsets;  /* [n_seqs + 1], offsets[0] == 0, increasing */
  int32_t logits_mode;     /* M4J_LOGITS_NONE, _LAST or _ALL */
  int32_t reserved;        /* 0 */
  float* logits;           /* LAST: [n_seqs, V]; ALL: [offsets[n_seqs], V]; NONE: ignored */
  int64_t logits_capacity; /* in floats */
  /* From here on absent in structs of older headers, and optional. */
  const m4j_sampling* const* samplings; /* NULL, or [n_seqs]: how the token after the last one of a sequence is chosen;
                                           NULL entries: not at all */
  int32_t* sampled;        /* [n_seqs], with samplings: the tokens chosen; where none is, nothing is written */
  float* log_probs;        /* optional [n_seqs], with samplings: logarithm of the probability that the model itself gave
                              that token, before penalty, temperature and filters, among the candidates */
} m4j_advance_args;

/* Feeds every sequence its tokens: conv window and SSM state move together. Prefill, chunked prefill and decode are
 * this one call; however a sequence is split into calls and whatever batch it travels in, the result is the same
 * (bit-equal for Mamba-1, within float32 rounding of the SSD for Mamba-2; bit-equal for any number of threads).
 * Either all sequences advance or none does.
 * States of M4J_BF16 take half the memory, and decoding moves half as many bytes of them; arithmetic stays float32.
 * They are rounded when they are stored: at the end of a call and between its blocks of some thousand tokens; in
 * Mamba-2 after every token where no sequence has more than four. So the result then depends on how a sequence is split
 * into calls, and in long prompts on what travels along, but a single token's rounding not on its batch. The last bit
 * is chosen by chance in proportion to what is cut off, from a hash of the number, so that changes below it add up
 * instead of being lost.
 * With activations of M4J_BF16, those that meet M4J_BF16 weights are rounded to bfloat16, the nearest, where the
 * instruction set is "avx3_bf16" or "amx"; elsewhere, and with other weights, nothing changes, nor on a GPU, where
 * activations have the type of 16-bit weights in any case. Sums stay float32. Mamba-1 is bit-equal as before; in
 * Mamba-2 the float32 rounding of the SSD may then end on either side of a tie (1e-2 of the norm of the logits).
 * Tokens are chosen where the logits are: with M4J_LOGITS_NONE nothing else leaves a GPU. Where a logit j among the
 * candidates is NaN or infinite, weights or state are damaged: the token of that sequence is then -1 - j for the first
 * such j, and its log_prob that logit. */
M4J_API m4j_status m4j_advance(m4j_states* states, const m4j_advance_args* args, m4j_error* err);

/* ---- Asynchronous calls ---------------------------------------------------------------------------------------- */

/* Calls that run one after the other on a thread of the queue, and their completions in the same order. They take turns
 * with all other calls on the engine. */
typedef struct m4j_queue m4j_queue;

/* Makes a queue. Its thread starts with the first call and sleeps while there is none. */
M4J_API m4j_status m4j_queue_create(m4j_engine* engine, m4j_queue** out, m4j_error* err);
/* Closes it, waits for the calls in it and drops the completions that nobody took. No call may be using the queue. */
M4J_API void m4j_queue_release(m4j_queue* queue);
/* Nothing can be submitted any more. What is in it runs to its end, and its completions can be taken. */
M4J_API void m4j_queue_close(m4j_queue* queue);

/* Submits an m4j_advance on states of the queue's engine. Wrong arguments and slots are refused here, and then there is
 * no completion; lack of memory, and more logits than a GPU samples from, come with the completion. From here to the
 * completion the slots are in use: other calls on them get M4J_ERR_BUSY. So long what args points to must stay valid, and
 * unchanged but for the outputs; args itself is copied. `tag` is the caller's name for the call. */
M4J_API m4j_status m4j_queue_advance(m4j_queue* queue, m4j_states* states, const m4j_advance_args* args, uint64_t tag,
                                     m4j_error* err);

typedef struct m4j_completion {
  uint64_t tag;
  m4j_error error; /* what m4j_advance would have returned and written; code M4J_OK: the sequences have advanced */
} m4j_completion;

/* Takes the next completion, waiting for it without using the processor: for up to timeout_ms, 1,000,000,000 at most,
 * for ever if that is negative. M4J_ERR_BUSY: none within that time; M4J_ERR_EXHAUSTED: the queue is closed, and none
 * will come. Any number of threads may wait. */
M4J_API m4j_status m4j_queue_next(m4j_queue* queue, int64_t timeout_ms, m4j_completion* out, m4j_error* err);

/* ---- Operations on caller-owned memory ------------------------------------------------------------------------- */
/* Tensors lie in memory of the engine's device. They are F32 unless stated. On a GPU the activations of a call (u,
 * delta, z, x, dt, gate, B, C and out) may be F16 or BF16 instead, all of one type, which out of linear may widen to
 * F32 and out of softmax has to; weights, biases, A, D, states and windows are float32 on any device unless stated.
 * Outputs must not overlap inputs unless stated, and must have non-zero strides. A call returns when its results are
 * there. Rows that a kernel of the GPU cannot take as they lie are packed on the way, in parts of bounded size. */

/* Selective scan (Mamba paper, algorithm 2):
 *   h_t = exp(delta_t * A) * h_{t-1} + delta_t * B_t * u_t,   y_t = C_t . h_t + D * u_t,   out_t = y_t * silu(z_t)
 * with delta = softplus(delta + delta_bias) if delta_softplus. */
typedef struct m4j_selective_scan_args {
  uint64_t struct_size;
  int32_t delta_softplus; /* 0 or 1 */
  int32_t reserved;       /* 0 */
  m4j_tensor u;             /* [B, E, L] */
  m4j_tensor delta;         /* [B, E, L] */
  m4j_tensor A;             /* [E, N], negative for a stable system; N at most 256 on a GPU */
  m4j_tensor B;             /* [B, G, N, L], G divides E */
  m4j_tensor C;             /* [B, G, N, L] */
  m4j_tensor D;             /* optional [E] */
  m4j_tensor z;             /* optional [B, E, L] */
  m4j_tensor delta_bias;    /* optional [E] */
  m4j_tensor initial_state; /* optional [B, E, N]; absent: zeros */
  m4j_tensor out;           /* [B, E, L] */
  m4j_tensor last_state;    /* optional [B, E, N]; may be the same memory as initial_state */
} m4j_selective_scan_args;

M4J_API m4j_status m4j_selective_scan(m4j_engine* engine, const m4j_selective_scan_args* args, m4j_error* err);

/* State space dual form of Mamba-2 (paper, section 6: chunked matrix form):
 *   h_t = exp(dt_t * A) * h_{t-1} + dt_t * x_t B_t^T,   y_t = h_t C_t + D * x_t
 * with dt = clamp(softplus(dt + dt_bias) if dt_softplus, dt_min, dt_max). */
typedef struct m4j_ssd_args {
  uint64_t struct_size;
  int32_t dt_softplus; /* 0 or 1 */
  int32_t reserved;    /* 0 */
  int64_t chunk_size;  /* 1 ... 4096 */
  float dt_min;
  float dt_max;             /* may be +Infinity */
  m4j_tensor x;             /* [B, L, H, P] */
  m4j_tensor dt;            /* [B, L, H] */
  m4j_tensor A;             /* [H] */
  m4j_tensor B;             /* [B, L, G, N], G divides H */
  m4j_tensor C;             /* [B, L, G, N] */
  m4j_tensor D;             /* optional [H] */
  m4j_tensor dt_bias;       /* optional [H] */
  m4j_tensor initial_state; /* optional [B, H, P, N]; absent: zeros */
  m4j_tensor out;           /* [B, L, H, P] */
  m4j_tensor last_state;    /* optional [B, H, P, N]; may be the same memory as initial_state */
} m4j_ssd_args;

M4J_API m4j_status m4j_ssd(m4j_engine* engine, const m4j_ssd_args* args, m4j_error* err);

/* Causal depthwise convolution over time with a carried window of past inputs, optionally followed by SiLU:
 *   y_t = bias + sum_k weight[k] * x_{t - (K - 1) + k} */
typedef struct m4j_causal_conv1d_args {
  uint64_t struct_size;
  int32_t silu;     /* 0 or 1 */
  int32_t reserved; /* 0 */
  m4j_tensor x;              /* [B, L, C] */
  m4j_tensor weight;         /* [C, K]; K at most 8 on a GPU */
  m4j_tensor bias;           /* optional [C] */
  m4j_tensor initial_window; /* optional [B, C, K-1], oldest first; absent: zeros */
  m4j_tensor out;            /* [B, L, C] */
  m4j_tensor last_window;    /* optional [B, C, K-1]; may be the same memory as initial_window */
} m4j_causal_conv1d_args;

M4J_API m4j_status m4j_causal_conv1d(m4j_engine* engine, const m4j_causal_conv1d_args* args, m4j_error* err);

/* RMSNorm over the last dimension, in n_groups equal parts; with a gate the input is x * silu(gate). */
typedef struct m4j_rms_norm_args {
  uint64_t struct_size;
  int64_t n_groups; /* >= 1, divides the last dimension */
  float eps;
  int32_t reserved;  /* 0 */
  m4j_tensor x;      /* [rows, D] */
  m4j_tensor gate;   /* optional [rows, D] */
  m4j_tensor weight; /* optional [D] */
  m4j_tensor out;    /* [rows, D]; may be the same memory as x */
} m4j_rms_norm_args;

M4J_API m4j_status m4j_rms_norm(m4j_engine* engine, const m4j_rms_norm_args* args, m4j_error* err);

/* out = x weight^T + bias, as if the weight were widened to float32. Only where the instruction set is "amx",
 * "avx3_bf16" or one that ends in "_vnni" or "_dotprod", and the weight Q8_0 or Q4_0, the 32 numbers of x that meet a
 * block are rounded to 16 bits in a unit of their own, that of the largest, which changes out by about 3e-5 of its norm.
 * On the CPU each row has the same bits alone and among others. */
typedef struct m4j_linear_args {
  uint64_t struct_size;
  m4j_tensor x;      /* [rows, in], rows contiguous */
  m4j_tensor weight; /* [out, in], rows contiguous; any dtype */
  m4j_tensor bias;   /* optional [out] */
  m4j_tensor out;    /* [rows, out], rows contiguous */
} m4j_linear_args;

M4J_API m4j_status m4j_linear(m4j_engine* engine, const m4j_linear_args* args, m4j_error* err);

/* Quantises weights [rows, in] (F32, F16 or BF16, contiguous) into out [rows, in] (Q8_0 or Q4_0). Q8_0 maps the largest
 * weight of a block to +-127, the scale of Q4_0 is searched for the least squared error. A NaN, or a magnitude above
 * 2^18, is M4J_ERR_INVALID_ARGUMENT; out is undefined then. It prepares what a model is made from: the engine's threads
 * do it, in host memory on any device. */
M4J_API m4j_status m4j_quantize(m4j_engine* engine, const m4j_tensor* weights, const m4j_tensor* out, m4j_error* err);

/* out[i] = table[ids[i]]; ids [n_ids], in host memory on any device, table [V, D] (any dtype) and out [n_ids, D] with
 * rows contiguous. */
M4J_API m4j_status m4j_embedding(m4j_engine* engine, const m4j_tensor* table, const int32_t* ids, int64_t n_ids,
                                 const m4j_tensor* out, m4j_error* err);

/* Over the last dimension of x [rows, n]; out may be the same memory as x. */
M4J_API m4j_status m4j_softmax(m4j_engine* engine, const m4j_tensor* x, const m4j_tensor* out, m4j_error* err);
M4J_API m4j_status m4j_log_softmax(m4j_engine* engine, const m4j_tensor* x, const m4j_tensor* out, m4j_error* err);

/* Chooses a token from each row of logits. A NaN or infinite logit among the candidates is M4J_ERR_INVALID_ARGUMENT. */
typedef struct m4j_sample_args {
  uint64_t struct_size;
  m4j_tensor logits;                    /* [rows, V], rows contiguous */
  const m4j_sampling* const* samplings; /* [rows], none NULL */
  int32_t* tokens;                      /* [rows] */
  float* log_probs;                     /* optional [rows], as in m4j_advance_args */
} m4j_sample_args;

M4J_API m4j_status m4j_sample(m4j_engine* engine, const m4j_sample_args* args, m4j_error* err);

/* out = x, element by element: one shape, any strides, F32, F16 or BF16 each, rounded to nearest, ties to even. */
M4J_API m4j_status m4j_copy(m4j_engine* engine, const m4j_tensor* x, const m4j_tensor* out, m4j_error* err);

#ifdef __cplusplus
}
#endif

#endif
