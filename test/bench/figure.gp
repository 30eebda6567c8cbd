# Draws build/figure.svg of build/bench/figure.dat, which report.py writes: subject, delivered %, seconds to the last, processor
# time, memory at rest, most memory. Greys and colours that can be read on white and on black; no background.
set terminal svg noenhanced size 960,230 font 'sans-serif,13' dynamic
set output 'figure.svg'
data = 'bench/figure.dat'
grey = '#7a7a7a'
colour(name) = name eq 'butler_webhook' ? 0x2f81f7 : name eq 'floor' ? 0x9a9a9a : 0xd9822b
array titles[4] = ['delivered, %', 'last one after, s', 'processor time each, us', 'memory: at rest, most; MB']
array fields[4] = [2, 3, 4, 6]
array largest[4]
do for [panel = 1:4] {
    stats data using fields[panel] nooutput
    largest[panel] = STATS_max
}

set multiplot layout 1,4 margins 0.125,0.985,0.14,0.84 spacing 0.02
set label 1 title at screen 0.5,0.06 center textcolor rgb grey
set border 0
unset xtics
unset ytics
set title textcolor rgb grey
set style fill solid noborder
set yrange [3.6:-0.6]
unset key

# A panel: a bar for each subject, and its number behind it. Only the first one has the names.
do for [panel = 1:4] {
    field = fields[panel]
    set xrange [0:largest[panel] * (panel == 4 ? 1.6 : 1.3)]
    set title titles[panel]
    plot data using (0):0:(0):field:($0 - 0.32):($0 + 0.32):(colour(strcol(1))) \
            with boxxyerror linecolor rgb variable, \
        data using (panel == 1 ? 0 : NaN):0:1 with labels right offset character -0.6,0 textcolor rgb grey, \
        data using (valid(field) ? column(field) : 0):0:(panel == 4 ? sprintf('%g, %g', column(5), column(6)) : \
            valid(field) ? sprintf('%g', column(field)) : 'not all arrived') \
            with labels left offset character 0.6,0 textcolor rgb grey
    unset label 1
}
