"Serves chapter 07: what the paper and others published, and whether each number was checked against its source."


def table_rows()->dict:
    "Map each row of the paper to metric -> (value, was it checked, where)."
    memory, text, abstract = (False, 'from memory'), (True, 'text of section 5'), (True, 'abstract and text')
    other = False, 'table in another reproduction'
    row = False, 'abstract and text; that it is this row, from memory'
    rows = dict(t1_none=(22.96, memory, 42.87, memory),
                t1_attn_8=(22.98, text, 43.15, memory), t1_attn_16=(22.14, memory, 45.94, memory),
                t1_attn_32=(18.28, text, 51.43, other), t1_attn_64=(18.65, row, 52.52, row),
                t1_res_8=(42.13, text, 23.17, memory), t1_res_16=(22.40, memory, 44.49, memory),
                t1_res_32=(27.33, text, 38.50, memory), t1_res_64=(28.82, memory, 38.96, memory),
                t2_sngan_projection=(27.62, abstract, 36.8, abstract), t2_sagan=(18.65, abstract, 52.52, abstract))
    table = {row: dict(fid=(fid, *a), inception_score=(score, *b)) for row, (fid, a, score, b) in rows.items()}
    table['t2_acgan'] = dict(inception_score=(28.5, *memory), intra_fid=(260.0, *memory))
    table['t2_sngan_projection']['intra_fid'] = (92.4, True, "its authors' page, of 850,000 steps")
    table['t2_sagan']['intra_fid'] = (83.7, False, 'a reader quoting the paper')
    return table


def other_runs()->dict:
    "Map who and when to metric -> (value, was it checked, where), for numbers that others published."
    eye, text, readme = (False, 'read by eye from its curves'), (True, 'its abstract'), (True, 'its README')
    log, there = (False, 'its public log'), (True, "mmgeneration's README")
    return {'TF-GAN, 8 GPUs, 1.0M steps': dict(fid=(19., *eye), inception_score=(49., *eye)),
            'TF-GAN, 8 GPUs, 1.8M steps': dict(fid=(17., *eye), inception_score=(54., *eye)),
            'TF-GAN, TPUs, at its best': dict(fid=(16., *eye)),
            'YLG': dict(fid=(15.94, *text)),
            'nnabla, 1M steps': dict(fid=(9.5, *readme), inception_score=(72., *readme)),
            'mmgeneration, as BigGAN': dict(fid=(12.83, *readme), inception_score=(69.54, *readme)),
            'mmgeneration, CIFAR-10': dict(fid=(9.43, *readme), inception_score=(9.32, *readme)),
            'StudioGAN, at its best': dict(fid=(34.73, *there), inception_score=(29.85, *there)),
            'StudioGAN, 1M steps': dict(fid=(38., *log))}


COMPARABLE = {                # who -> is the number comparable with the paper's?
    'TF-GAN, 8 GPUs, 1.0M steps': 'in part: against validation images; released form, attention at 32, '
                                  'no averaged weights',
    'TF-GAN, 8 GPUs, 1.8M steps': 'in part: the same, and longer',
    'TF-GAN, TPUs, at its best': 'in part: against validation images; batch 1024, the best step chosen; '
                                 'the number is an upper bound',
    'YLG': 'in part: sparse attention, all else equal to the 18.65 of SAGAN, by its authors; '
           'its code takes validation images',
    'nnabla, 1M steps': 'no: its own Inception network, 10,000 images, against validation images, '
                        'and it varies with the resizing',
    'mmgeneration, as BigGAN': 'in part: other settings, averaged weights, the best step chosen (826k); '
                               'the score over ten splits',
    'mmgeneration, CIFAR-10': 'no: another data set, 32 px',
    'StudioGAN, at its best': 'in part: against validation images; the best of 1M steps, at 920k',
    'StudioGAN, 1M steps': 'the same run at its end, between 37.7 and 38.0: the public trace of late decay'}

PUBLISHED = table_rows() | other_runs()      # row or who -> metric -> (value, was it checked, where)
