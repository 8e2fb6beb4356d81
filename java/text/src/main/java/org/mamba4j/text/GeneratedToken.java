package org.mamba4j.text;

/**
 * One step of a generation.
 *
 * @param id token id; a stop token is reported too
 * @param text what became readable with it. Empty while a character is incomplete or while the text could still turn out
 *     to be a stop string; then a later token carries it. All texts together are the generated text.
 * @param logProb natural logarithm of the probability the model gave this token, before temperature and filters
 * @param index 0 for the first new token
 */
public record GeneratedToken(int id, String text, float logProb, int index) {}
