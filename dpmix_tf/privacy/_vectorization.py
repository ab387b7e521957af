"""The only door to what tf.vectorized_map is made of, and three replacements in it.

It turns a function of one example into one of a chunk, operation by operation. Two
operations become faster, and one becomes safe: matrix products over views, which
TensorFlow would write in a form whose kernel reads and writes beyond its tensors. The
numbers stay the same but for rounding. TensorFlow's module is private: its version is
pinned, and a test fails where a replacement no longer takes effect.
"""

import contextlib

import tensorflow as tf
from tensorflow.python.ops.parallel_for import pfor

# Up to so many output pixels an example, over its views, a matrix product is faster
# than one small kernel an example; beyond, by what it copies, slower. Measured with
# benchmarks/step.py.
_MOST_PIXELS = 128

_flatten_first_two_axes = pfor._flatten_first_two_dims


@contextlib.contextmanager
def replaced_operations():
    """While it lasts, tf.vectorized_map uses the replacements below."""
    replacements = {
        "Conv2DBackpropFilter": _filter_gradients,
        "BatchMatMulV2": _matrix_products,
    }
    originals = {name: pfor._pfor_converter_registry[name] for name in replacements}
    pfor._flatten_first_two_dims = _flatten
    pfor._pfor_converter_registry.update(replacements)
    try:
        yield
    finally:
        pfor._flatten_first_two_dims = _flatten_first_two_axes
        pfor._pfor_converter_registry.update(originals)


def _flatten(x: tf.Tensor) -> tf.Tensor:
    """[c,K,...] -> [c*K,...]; what `x` was made of, where it was made of just that.

    Without pairs of reshapes between them, operations are recognised as belonging
    together: the gradient of max pooling is then computed by another kernel, in a tenth
    of the time.
    """
    if x.op.type == "Reshape":
        before, rest = x.op.inputs[0], x.shape[2:]
        if rest.is_fully_defined() and before.shape[1:].as_list() == rest.as_list():
            return before
    return _flatten_first_two_axes(x)


def _matrix_products(operation: pfor._PforInput):
    """[c,K,...,t,d] times one matrix for all or one for each, in rank 2 or 3.

    TensorFlow's own conversion keeps all axes. On CPUs, the kernel behind a product
    [n,1,t,d] x [d,e] (attention's projections with one view per example) then takes the
    wrong stride where n is 4 or more: it computes an example's row from memory that is
    not this example's, and it corrupts the heap. One product of all rows is also the
    faster form.
    """
    operation.expanddim_inputs_for_broadcast()
    left, right = operation.input(0)[0], operation.input(1)[0]
    settings = {
        "adjoint_a": operation.get_attr("adj_x"),
        "adjoint_b": operation.get_attr("adj_y"),
    }
    batch, matrices = left.shape[:-2], right.shape[:-2]
    static = left.shape.is_fully_defined() and right.shape.is_fully_defined()
    if static and batch.rank >= matrices.rank and matrices.num_elements() == 1:
        if settings.pop("adjoint_a"):
            left = tf.linalg.adjoint(left)
        rows = tf.reshape(left, [-1, left.shape[-1]])
        one = tf.reshape(right, right.shape[-2:])
        product = tf.matmul(rows, one, **settings)
        product = tf.reshape(product, [*left.shape[:-1], product.shape[-1]])
    elif static and batch == matrices:
        sides = (tf.reshape(side, [-1, *side.shape[-2:]]) for side in (left, right))
        product = tf.matmul(*sides, **settings)
        product = tf.reshape(product, [*batch, *product.shape[-2:]])
    else:
        product = tf.matmul(left, right, **settings)
    return pfor.wrap(product, True)


def _filter_gradients(operation: pfor._PforInput):
    """Gradients of a convolution's filter, one an example, without a tf.while_loop."""
    operation.stack_inputs(stack_indices=[0, 2])
    images = operation.stacked_input(0)  # [c,K,H,W,in]
    output_gradients = operation.stacked_input(2)  # [c,K,H',W',out]
    filter_sizes = operation.unstacked_input(1)
    settings = {
        name: operation.get_attr(name)
        for name in (
            "strides",
            "padding",
            "explicit_paddings",
            "data_format",
            "dilations",
        )
    }
    if _suits_matrix_product(images, output_gradients, filter_sizes, settings):
        gradients = _as_matrix_product(
            images,
            output_gradients,
            tf.get_static_value(filter_sizes),
            settings["strides"],
            settings["padding"],
        )
    else:
        count = images.shape[0]
        pairs = zip(
            tf.unstack(images, count), tf.unstack(output_gradients, count), strict=True
        )
        gradients = tf.stack(
            [
                tf.raw_ops.Conv2DBackpropFilter(
                    input=one,
                    filter_sizes=filter_sizes,
                    out_backprop=output_gradient,
                    **settings,
                )
                for one, output_gradient in pairs
            ]
        )
    return pfor.wrap(gradients, True)


def _suits_matrix_product(images, output_gradients, filter_sizes, settings) -> bool:
    sizes = tf.get_static_value(filter_sizes)
    pixels = output_gradients.shape[1:4].num_elements()
    return (
        sizes is not None
        and sizes[2] == images.shape[-1]  # not a grouped convolution
        and pixels is not None
        and pixels <= _MOST_PIXELS
        and images.shape.is_fully_defined()
        and settings["padding"] in (b"SAME", b"VALID")
        and settings["data_format"] == b"NHWC"
        and all(rate == 1 for rate in settings["dilations"])
    )


def _as_matrix_product(images, output_gradients, sizes, strides, padding):
    """[h,w,in,out] an example: its patches, transposed, times the output's gradient."""
    count = images.shape[0]
    patches = tf.image.extract_patches(
        tf.reshape(images, [-1, *images.shape[2:]]),
        sizes=[1, sizes[0], sizes[1], 1],
        strides=strides,
        rates=[1, 1, 1, 1],
        padding=padding,
    )
    gradients = tf.matmul(
        tf.reshape(patches, [count, -1, sizes[0] * sizes[1] * sizes[2]]),
        tf.reshape(output_gradients, [count, -1, sizes[3]]),
        transpose_a=True,
    )
    return tf.reshape(gradients, [count, *sizes])
